"""`ferry up`: everything on one machine, and its orderly end."""
