"""GET /metrics: which versions serve, in Prometheus's text format.

The figures live in Redis and are read when they are asked for, so every process answers the same
and nothing is left behind by processes that ended.
"""

from __future__ import annotations

from collections.abc import Iterator

from flask import Blueprint, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily

from api.routes.flask_side import services
from shared.registry.repository_index import UNLOADED, repository_index
from shared.registry.snapshot import Snapshot

blueprint = Blueprint("metrics", __name__)


class ModelStates:
    """A collector of one snapshot; prometheus_client asks it once."""

    def __init__(self, snapshot: Snapshot) -> None:
        """Read nothing yet."""
        self._snapshot = snapshot

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Return for each model version whether it is ready, its share of requests, its failure."""
        labels = ["model", "version"]
        ready = GaugeMetricFamily(
            "ferry_model_ready", "1 for a version that can answer, else 0.", labels=labels
        )
        share = GaugeMetricFamily(
            "ferry_model_request_share",
            "Which part of the requests that name no version a version gets, from 0 to 1.",
            labels=labels,
        )
        failure = GaugeMetricFamily(
            "ferry_model_load_failure",
            "1 for what cannot be loaded, with the reason; version is empty for a whole model.",
            labels=[*labels, "reason"],
        )
        taken_back = GaugeMetricFamily(
            "ferry_model_taken_back",
            "1 for a version that took over and failed its first requests, so that they went back.",
            labels=labels,
        )
        for entry in repository_index(self._snapshot):
            name, version = entry["name"], entry.get("version", "")
            if version:
                ready.add_metric([name, version], float(entry["state"] == "READY"))
                share.add_metric([name, version], self._share(name, version))
                if self._is_taken_back(name, version):
                    taken_back.add_metric([name, version], 1.0)
            if entry["state"] != "READY" and entry["reason"] not in ("", UNLOADED):
                failure.add_metric([name, version, entry["reason"]], 1.0)
        yield from (ready, share, failure, taken_back)

    def _is_taken_back(self, name: str, version: str) -> bool:
        serving = self._snapshot.served.get(name)
        return serving is not None and version in serving.taken_back

    def _share(self, name: str, version: str) -> float:
        serving = self._snapshot.served.get(name)
        if serving is None or not serving.split:
            return float(serving is not None and version == serving.default)
        return serving.split.get(version, 0) / sum(serving.split.values())


@blueprint.get("/metrics")
def metrics() -> Response:
    """Answer the state of every model version; 503 without Redis."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ModelStates(services().catalog.snapshot()))
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)
