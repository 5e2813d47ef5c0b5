"""The benchmarks' child processes."""
