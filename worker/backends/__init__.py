"""The frameworks that run models, a module each."""
