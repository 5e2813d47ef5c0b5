"""The gunicorn side: reading bodies, compression, the fast path past WSGI."""
