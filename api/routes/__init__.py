"""HTTP routes, one Flask blueprint for each area of URLs."""
