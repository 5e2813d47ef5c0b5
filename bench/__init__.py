"""Load benchmarks: `make bench`."""
