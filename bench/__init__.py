"""Benchmarks, one script per claim; each writes a record into `bench/results/`.

Comparisons check that both sides compute the same before they time anything.
"""
