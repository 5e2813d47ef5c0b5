"""Exports models and proves versions of them."""
