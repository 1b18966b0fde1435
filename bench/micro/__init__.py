"""Small parts timed by pytest-benchmark, each against a reference of the same moment: `make bench-micro`."""
