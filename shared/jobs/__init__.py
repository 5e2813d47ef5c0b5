"""Orders and records of jobs."""
