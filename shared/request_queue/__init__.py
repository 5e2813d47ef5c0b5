"""Both ends of a request's way through Redis: push and wait, claim and publish."""
