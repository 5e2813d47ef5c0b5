"""The benchmarks' children."""
