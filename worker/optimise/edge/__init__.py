"""Bundles for phones and boards."""
