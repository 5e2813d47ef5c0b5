"""Programs of torch."""
