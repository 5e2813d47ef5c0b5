"""GET /docs/: /openapi.json for people, to read and to try.

The pages are Swagger UI's, out of the package flask-swagger-ui: nothing is fetched from elsewhere,
and the header says to the browser that nothing may be.
"""

from __future__ import annotations

from flask import Blueprint, Response
from flask_swagger_ui import get_swaggerui_blueprint

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


def make_blueprint() -> Blueprint:
    """Return the routes below /docs/."""
    blueprint: Blueprint = get_swaggerui_blueprint("/docs", "/openapi.json", config=CONFIG)
    blueprint.after_request(_with_policy)
    return blueprint


def _with_policy(response: Response) -> Response:
    response.headers["Content-Security-Policy"] = POLICY
    return response
