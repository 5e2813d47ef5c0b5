"""The frameworks that run models, one module for each format."""
