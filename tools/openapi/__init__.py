"""Writes the OpenAPI document from the routes, the errors and recorded examples."""
