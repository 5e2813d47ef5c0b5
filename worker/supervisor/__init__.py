"""One machine's process: starts instances, moves traffic."""
