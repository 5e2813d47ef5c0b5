"""Load benchmarks with real servers: `make bench`."""
