"""The frameworks that run models. To add one, see CONTRIBUTING.md."""
