"""One process a machine: which instances run, and what becomes of their work."""
