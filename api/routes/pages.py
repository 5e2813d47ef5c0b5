"""/ and /pages/: the playground, for people with a browser; / is JSON for everybody else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flask import Blueprint, Response, current_app, render_template, request

import api.pages
from api.access.guard import KEY, is_admin, may_know
from api.infer.descriptions import server_description
from api.infer.inference import checked_version
from api.infer.public_errors import error_answer
from api.pages.burst import MAX_SENT_AT_ONCE, as_json, send_copies
from api.pages.signature import listed_models, signature
from api.payloads.v2_json import load_object
from api.routes.flask_side import json_response, response_of, services
from api.routes.page_guard import check_page, guarded_page
from api.server.body import MAX_ORDER_BYTES, read_body
from shared.errors import BadRequest, RedisUnavailable
from shared.registry.snapshot import Snapshot

FOLDER = Path(api.pages.__file__).parent
blueprint = Blueprint(
    "pages",
    __name__,
    template_folder=str(FOLDER / "templates"),
    static_folder=str(FOLDER / "static"),
    static_url_path="/pages/static",
)


@blueprint.get("/")
def root() -> Response:
    """Answer a browser with the playground; all others as /v2, and that the server is alive.

    KServe's SDK asks the latter here in version 1.
    """
    if _wants_page():
        response = page("playground.html", chosen=request.args.get("model", ""))
    else:
        response = json_response({**server_description(), "status": "alive"})
    response.headers["Vary"] = "Accept"
    return response


@blueprint.get("/pages/models/<name>")
@blueprint.get("/pages/models/<name>/versions/<version>")
def model(name: str, version: str | None = None) -> Response:
    """Answer a model's form, and the shapes of an example; 404 for one that is not registered."""
    catalog = services().catalog
    spec = catalog.find(name, checked_version(version))
    hidden = {} if is_admin(request.environ.get(KEY)) else {"reason": ""}
    return json_response(signature(spec, catalog.snapshot()) | hidden)


@blueprint.post("/pages/models/<name>/tokens")
def tokens(name: str) -> Response:
    """Answer texts as the tensors that v2's route takes: `{"text": [...]}` to `{"inputs": [...]}`.

    They are for the playground's example of a client that sends tensors.
    """
    spec = services().catalog.find(name)
    texts = load_object(read_body(MAX_ORDER_BYTES)).get("text")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadRequest('"text" must be a list of strings')
    tensors, _ = services().tokenizers.encode(texts, spec)
    return json_response({"inputs": [_tensor(each) for each in tensors]})


@blueprint.post("/pages/burst")
def burst() -> Response:
    """Put the body `count` times at once to the path `to`, and answer what became of each."""
    check_page()
    raw = request.args.get("count", "")
    if not raw.isascii() or not raw.isdigit() or len(raw) > len(str(MAX_SENT_AT_ONCE)):
        raise BadRequest(f"count={raw!r} must be a number from 1 to {MAX_SENT_AT_ONCE}")
    target = request.args.get("to", "")
    app: Any = current_app
    sent = send_copies(app.wsgi_app, request.environ, target, read_body(), int(raw))
    return json_response({"answers": as_json(sent)})


@blueprint.errorhandler(RedisUnavailable)
def away(error: RedisUnavailable) -> Response:
    """Answer with a page that says so also where the door could not ask Redis for a key."""
    if request.endpoint != "pages.root" or not _wants_page():
        return response_of(error_answer(error, f"{request.method} {request.path}"))
    html = render_template("playground.html", models=[], trouble=error.message, chosen="")
    response = guarded_page(html)
    response.status_code = error.status
    return response


def _wants_page() -> bool:
    offered = ["application/json", "text/html"]
    return request.accept_mimetypes.best_match(offered) == "text/html"


def page(template: str, **values: Any) -> Response:
    """Return a page with what its head needs, also where Redis is away: it says so then."""
    snapshot, trouble = _seen()
    key = request.environ.get(KEY)
    hidden = {} if is_admin(key) else {"reason": ""}
    models = [each | hidden for each in listed_models(snapshot) if may_know(key, each["name"])]
    html = render_template(template, models=models, trouble=trouble, **values)
    return guarded_page(html)


def _seen() -> tuple[Snapshot, str]:
    try:
        services().catalog.refresh()
        return services().catalog.snapshot(), ""
    except RedisUnavailable as error:
        return Snapshot(), str(error)


def _tensor(tensor: Any) -> dict[str, Any]:
    data = tensor.array().reshape(-1).tolist()
    shape = list(tensor.shape)
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": shape, "data": data}
