"""Finds models and reads their configuration."""
