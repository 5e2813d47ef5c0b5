"""Bundles for phones."""
