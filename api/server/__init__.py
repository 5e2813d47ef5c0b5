"""Between gunicorn's socket and the routes: bodies, compression, the fast path."""
