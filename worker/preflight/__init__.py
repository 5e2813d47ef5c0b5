"""Looks at GPUs, and gives each instance its own."""
