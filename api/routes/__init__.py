"""The Flask routes, a module for each area of URLs."""
