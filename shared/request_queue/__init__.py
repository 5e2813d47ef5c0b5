"""Both ends of a request's way through Redis: push, claim, publish, wait."""
