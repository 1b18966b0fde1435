"""A training engine for proactive agents.

`proactor.engine` loads, samples and trains a model; `proactor.kernels` holds its operations, one file each or
a few with a common prefix; the modules beside them turn dialogues into opportunity windows, rewards and
reports. Importing this package imports nothing heavy and changes no global state.
"""

__version__ = "0.1.0"
