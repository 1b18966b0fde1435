"""Probabilities of each tool's fire, thresholds for a budget of wrong fires, and the trade-off with lead."""
