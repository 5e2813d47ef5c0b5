"""The form of figures."""
