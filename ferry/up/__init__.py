"""`ferry up`: starts everything on one machine and stops it in order."""
