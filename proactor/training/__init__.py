"""Runs: the small model to start from, sampled and scored decisions, the training loop and its summary."""
