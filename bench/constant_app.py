"""The limit of the HTTP edge: a Flask route that does nothing, run by Ferry's gunicorn.conf.py."""

from __future__ import annotations

from flask import Flask

PATH = "/constant"

app = Flask(__name__)


@app.get(PATH)
def constant() -> dict[str, int]:
    """Answer a small constant; nothing that Flask and gunicorn do can cost less than this."""
    return {"value": 1}
