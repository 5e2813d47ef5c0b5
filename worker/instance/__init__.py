"""One process an instance: load, warm up, then claim, run, publish."""
