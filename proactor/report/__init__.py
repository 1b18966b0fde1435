"""The report of a run, or of several: self-contained HTML. Import from its modules: most need torch."""
