"""What is inside bodies: each protocol's tensors, checked, and results back."""
