"""The page that `ferry optimise` wrote about a version: what was tried, and what it is like."""

from __future__ import annotations

from flask import Blueprint, Response

from api.infer.inference import checked_version
from api.routes.flask_side import services
from shared.errors import UnknownModel

PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
"""The page needs nothing from anywhere, and no script of it would run."""

blueprint = Blueprint("reports", __name__)


@blueprint.get("/models/<name>/report")
@blueprint.get("/models/<name>/versions/<version>/report")
def report(name: str, version: str | None = None) -> Response:
    """Answer the report beside the version that serves, or the one named; 404 without one."""
    spec = services().catalog.find(name, checked_version(version))
    page = services().registry.page(spec.key)
    if page is None:
        raise UnknownModel(
            f"'{name}' version {spec.version} has no report: ferry optimise makes it"
        )
    response = Response(page, mimetype="text/html")
    response.headers["Content-Security-Policy"] = PAGE_POLICY
    return response
