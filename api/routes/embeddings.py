"""POST /v1/embeddings: texts in, vectors out, as OpenAI's clients ask for them."""

from __future__ import annotations

from flask import Blueprint, Response, request

from api.routes.flask_side import response_of, services
from api.server.body import read_body

blueprint = Blueprint("embeddings", __name__)
MAX_TEXTS_BYTES = 4 * 2**20
"""Of the JSON around all texts."""


@blueprint.post("/v1/embeddings")
def embed() -> Response:
    """Answer up to 2048 texts with a vector each. Next stop: `Embeddings.answer`."""
    raw = read_body(MAX_TEXTS_BYTES)
    body = services().readers.embeddings(raw)
    return response_of(services().embeddings.answer(body, raw, request.environ))
