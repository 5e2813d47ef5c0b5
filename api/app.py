"""Builds the Flask application from settings."""

from __future__ import annotations

from flask import Flask

from api.access.browsers import Browsers
from api.openapi import document as openapi
from api.routes import (
    embeddings,
    infer,
    jobs,
    metrics,
    operations,
    pages,
    predict,
    reports,
    requests,
    v1,
    v2,
)
from api.routes.door import make_door, register_request_ids, register_traces
from api.routes.errors import register_error_handlers
from api.routes.flask_side import EXTENSION, HttpServices, OrjsonProvider
from api.server.body import BoundedReads, InMemoryRequest
from api.server.compression import Compressed
from api.server.fast_path import FastPath
from api.server.pace import Pace
from shared.inputs.pictures import limit_pictures
from shared.settings import Settings


def create_app(settings: Settings) -> Flask:
    """Return the application; opens no connection before the first request."""
    app = Flask(__name__)
    app.request_class = InMemoryRequest
    app.json = OrjsonProvider(app)
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    app.config["MAX_FORM_PARTS"] = 256
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False  # by a redirect, which would name the request's Host
    app.extensions[EXTENSION] = services = HttpServices.of(settings, "gunicorn.error")
    app.extensions[metrics.EXPORTER] = metrics.make_exporter(services)
    app.extensions |= operations.extensions(services)
    limit_pictures(settings.max_image_pixels)
    register_request_ids(app, settings)  # first, so that who is refused has one too
    if services.tracing is not None:
        register_traces(app, services.tracing)
        app.extensions["tracing"] = services.tracing
    browsers = Browsers(settings)
    make_door(app, browsers)
    areas = (
        infer, predict, embeddings, v1, v2, requests, metrics, reports, jobs, pages, operations,
        openapi,
    )  # fmt: skip
    for module in areas:
        app.register_blueprint(module.blueprint)
    app.register_blueprint(openapi.make_pages())
    register_error_handlers(app)
    pace = Pace(settings, services.guard.keyring)
    app.extensions["fast_path"] = FastPath(services.inference, services, browsers, pace)
    app.wsgi_app = BoundedReads(  # type: ignore[method-assign]
        Compressed(app.wsgi_app), pace
    )
    return app
