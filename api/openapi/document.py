"""GET /openapi.json: the description of every route; GET /docs/: the same to read and to try.

The document is the file openapi.json, which `make openapi` writes. The pages are Swagger UI's, out
of the package flask-swagger-ui: nothing is fetched from elsewhere, and the header says to the
browser that nothing may be.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import version as package_version
from pathlib import Path

import orjson
from flask import Blueprint, Response
from flask_swagger_ui import get_swaggerui_blueprint

FILE = Path(__file__).with_name("openapi.json")
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; frame-ancestors 'none'"
)
CONFIG = {
    "app_name": "Ferry",
    "oauth2RedirectUrl": "/docs/oauth2-redirect.html",
    "validatorUrl": None,  # Swagger UI would send the document's address to swagger.io
    "docExpansion": "list",
    "displayRequestDuration": True,
    "defaultModelsExpandDepth": 0,
}

blueprint = Blueprint("openapi", __name__)


@blueprint.get("/openapi.json")
def document() -> Response:
    """Answer the document, with the version that is installed."""
    return Response(_document(), content_type="application/json")


@cache  # milliseconds, in which nobody else is answered
def _document() -> bytes:
    found = orjson.loads(FILE.read_bytes())
    found["info"]["version"] = package_version("ferry")
    return orjson.dumps(found)


def make_pages() -> Blueprint:
    """Return the routes below /docs/."""
    pages: Blueprint = get_swaggerui_blueprint("/docs", "/openapi.json", config=CONFIG)
    pages.after_request(_with_policy)
    return pages


def _with_policy(response: Response) -> Response:
    response.headers["Content-Security-Policy"] = POLICY
    return response
