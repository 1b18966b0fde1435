"""Data and functions of other projects in ours, and ours in theirs: a file a neighbour, none of them imported."""
