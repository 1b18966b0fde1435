"""Runs: the small model one may start from, decisions sampled and judged, the loop that trains and resumes,
and what came of it.
"""
