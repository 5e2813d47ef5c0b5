"""Follows execution policies."""
