"""GET /metrics: versions, queues, answers and devices, for Prometheus.

The figures live in Redis and are read when they are asked for, so every process answers the same
and nothing is left behind by processes that ended. Those that prometheus-flask-exporter would count
by itself are one process's, of many: it counts none here.
"""

from __future__ import annotations

import re

from flask import Blueprint, Response, current_app, request
from prometheus_client import CollectorRegistry
from prometheus_flask_exporter import PrometheusMetrics

from api.access.guard import KEY, is_admin
from api.metrics.drift import DriftFigures
from api.metrics.keys import KeyFigures
from api.metrics.predictions import PredictionFigures
from api.metrics.queues import QueueStates
from api.metrics.redis_server import RedisFigures
from api.metrics.versions import VersionFigures
from api.services import Services
from shared.drift.findings import LatestDrift
from shared.exposition.devices import DeviceFigures
from shared.model_spec import ModelSpec

blueprint = Blueprint("metrics", __name__)
REASON = re.compile(
    r'^((?:ferry_model_load_failure|ferry_model_warning|ferry_device_closed)\{.*?\breason=")'
    r'(?:[^"\\]|\\.)*"',
    re.MULTILINE,
)
"""A label that may name files; only admins see what it says. Other reasons are words of ours."""
EXPORTER = "metrics"
"""The exporter's place in Flask's `extensions`."""


def make_exporter(services: Services) -> PrometheusMetrics:
    """Return what answers scrapes; it asks nobody before the first one."""
    client, registry, catalog = services.client, services.registry, services.catalog
    prefix = services.settings.key_prefix

    def versions() -> list[ModelSpec]:
        models = catalog.snapshot().models
        return [spec for of_model in models.values() for spec in of_model.values()]

    collectors = CollectorRegistry()
    collectors.register(VersionFigures(catalog.snapshot))
    collectors.register(QueueStates(client, prefix, registry, versions))
    collectors.register(PredictionFigures(client, prefix, versions))
    collectors.register(RedisFigures(client))
    collectors.register(DeviceFigures(lambda: registry.devices().values()))
    collectors.register(DriftFigures(LatestDrift(client, prefix, registry), versions))
    collectors.register(KeyFigures(services.guard))
    collectors.register(services.refusals)
    return PrometheusMetrics.for_app_factory(path=None, export_defaults=False, registry=collectors)


@blueprint.get("/metrics")
def metrics() -> Response:
    """Answer the figures of every model version, queue and GPU; 503 without Redis.

    `name[]` asks for some alone.
    """
    exporter: PrometheusMetrics = current_app.extensions[EXPORTER]
    names = request.args.getlist("name[]") or None
    text, content_type = exporter.generate_metrics(request.headers.get("Accept"), names)
    if not is_admin(request.environ.get(KEY)):
        text = REASON.sub(r'\1"', text)
    return Response(text, content_type=content_type)
