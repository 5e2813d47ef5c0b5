"""A batch's forward passes."""
