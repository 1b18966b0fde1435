"""Data and functions of other projects here, and ours there: a file a neighbour, none of them imported."""
