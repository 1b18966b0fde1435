"""Every operation and the whole step on a GPU; `__main__.py` says how to run it and what its record holds."""
