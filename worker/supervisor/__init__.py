"""The process of one machine: starts instances, moves traffic, puts lost work back."""
