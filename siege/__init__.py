"""Attacks beside honest clients."""
