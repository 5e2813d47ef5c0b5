"""HTTP routes, a blueprint for each area."""
