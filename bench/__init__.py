"""Load benchmarks with real server processes: `make bench`."""
