"""How probable each tool's fire is at every turn, thresholds for a budget of wrong fires, and what firing
early is worth.
"""
