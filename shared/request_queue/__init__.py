"""Both ends of a request's way through Redis."""
