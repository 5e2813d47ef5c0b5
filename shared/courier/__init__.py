"""How one process carries its requests to Redis and their answers back."""
