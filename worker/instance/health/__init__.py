"""Tells an instance's faults from a request's."""
