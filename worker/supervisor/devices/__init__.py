"""GPUs, and their faults."""
