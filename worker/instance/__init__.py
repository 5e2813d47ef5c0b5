"""The process of one model instance."""
