"""Builds the Flask application from settings."""

from __future__ import annotations

from functools import partial

from flask import Flask

from api.infer.async_answers import AsyncAnswers
from api.infer.inference import Inference
from api.infer.queues import Queues
from api.openapi import document as openapi
from api.payloads.pictures import limit_pictures
from api.payloads.texts import TokenizerCache
from api.routes import (
    health,
    log_settings,
    metrics,
    model_statistics,
    predict,
    repository,
    requests,
    unsupported,
    v1,
)
from api.routes import infer as inference
from api.routes import v2 as metadata
from api.routes.errors import register_error_handlers
from api.routes.responses import OrjsonProvider
from api.server.body import BoundedReads
from api.server.compression import Compressed
from api.server.direct import DirectInference
from api.server.fast_path import Shortcut
from shared.operations.model_control import ModelControl
from shared.registry.catalog import Catalog
from shared.registry.log_settings import LogLevel, LogSettings
from shared.registry.registry import Registry
from shared.request_queue.model_statistics import model_statistics as read_statistics
from shared.settings import Settings
from shared.wire.client import connect


def create_app(settings: Settings) -> Flask:
    """Return the application; opens no connection before the first request."""
    app = Flask(__name__)
    app.json = OrjsonProvider(app)
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    app.config["MAX_FORM_PARTS"] = 256
    app.url_map.strict_slashes = False
    client = connect(settings.redis_url)
    registry = Registry(client, settings.key_prefix)
    app.extensions["settings"] = settings
    log_level = LogLevel(settings.log_level, "gunicorn.error")
    app.extensions["log_settings"] = LogSettings(registry, log_level)
    app.extensions["catalog"] = catalog = Catalog(registry, log_level)
    app.extensions["model_control"] = ModelControl(
        client, settings.key_prefix, settings.model_control_mode
    )
    app.extensions["queues"] = queues = Queues(client, settings, catalog)
    app.extensions["async_answers"] = answers = AsyncAnswers(client, settings, queues)
    app.extensions["inference"] = direct = Inference(catalog, queues, answers)
    app.extensions["tokenizers"] = TokenizerCache(registry)
    app.extensions["statistics"] = partial(read_statistics, client, settings.key_prefix)
    limit_pictures(settings.max_image_pixels)
    for module in (health, metadata, inference, predict, requests, v1, openapi):
        app.register_blueprint(module.blueprint)
    for module in (repository, model_statistics, metrics, log_settings, unsupported):
        app.register_blueprint(module.blueprint)
    app.register_blueprint(openapi.make_pages())
    register_error_handlers(app)
    plain = DirectInference(app.wsgi_app, direct, settings.max_body_bytes)
    app.extensions["shortcut"] = Shortcut(plain, settings.request_timeout_seconds)
    app.wsgi_app = BoundedReads(  # type: ignore[method-assign]
        Compressed(plain), settings.request_timeout_seconds
    )
    return app
