"""Load benchmarks with real server processes: `python -m bench`, `make bench`."""
