"""The limit of the HTTP edge: Flask routes that do nothing, run by Ferry's gunicorn.conf.py."""

from __future__ import annotations

from flask import Flask, request

PATH = "/constant"

app = Flask(__name__)


@app.get(PATH)
def constant() -> dict[str, int]:
    """Answer a small constant; nothing that Flask and gunicorn do can cost less than this."""
    return {"value": 1}


@app.post(PATH)
def constant_for_a_body() -> dict[str, int]:
    """Read the body and answer a small constant: what the same request costs before any work."""
    request.get_data()
    return {"value": 1}
