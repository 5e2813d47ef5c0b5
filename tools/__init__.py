"""Dev tools."""
