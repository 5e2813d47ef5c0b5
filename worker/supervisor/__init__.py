"""One machine's process: starts instances, moves traffic, puts lost work back."""
