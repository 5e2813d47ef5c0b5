"""The objects that answer requests, made once for a process of the API, HTTP's or gRPC's.

HTTP's own stand in `api.routes.flask_side`: gRPC's process needs no pictures and no tokenizers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from redis import Redis

from api.access.guard import Guard
from api.infer.queues import Queues
from api.infer.readiness import Pulse, Readiness
from api.infer.triton_statistics import model_statistics
from api.metrics.refusals import Refusals
from api.tracing import Tracing
from shared.history.recorder import Recorder
from shared.model_spec import ModelSpec
from shared.operations.model_control import ModelControl
from shared.registry.catalog import Catalog
from shared.registry.log_settings import LogLevel, LogSettings
from shared.registry.registry import Registry
from shared.registry.trace_settings import TraceSampler, TraceSettings
from shared.settings import Settings
from shared.tracing.switch import tracer_of
from shared.wire.client import connect

Statistics = Callable[[Iterable[ModelSpec]], list[dict[str, object]]]


@dataclass(frozen=True)
class Services:
    """One process's services; they open no connection before the first request."""

    settings: Settings
    client: Redis
    registry: Registry
    catalog: Catalog
    queues: Queues
    statistics: Statistics
    log_settings: LogSettings
    trace_settings: TraceSettings
    model_control: ModelControl
    recorder: Recorder
    readiness: Readiness
    guard: Guard
    tracing: Tracing | None
    refusals: Refusals

    @classmethod
    def of(cls, settings: Settings, *loggers: str, service: str = "ferry-api") -> Services:
        """Make them all; the level of the root's logger and of `loggers` can be set by request.

        In traces the process is a `service` of this name.
        """
        client, prefix = connect(settings.redis_url, settings.key_prefix), settings.key_prefix
        registry = Registry(client, prefix)
        log_level = LogLevel(settings.log_level, *loggers)
        catalog = Catalog(registry, log_level)
        tracer = tracer_of(settings.traces_url, service)
        guard = Guard(client, settings)
        return cls(
            settings,
            client,
            registry,
            catalog,
            Queues(client, settings, catalog, guard.keyring),
            partial(model_statistics, client, prefix),
            LogSettings(registry, log_level),
            TraceSettings(registry, catalog, settings),
            ModelControl(client, prefix, settings.model_control_mode),
            Recorder(client, prefix, catalog, registry),
            Readiness(catalog, Pulse(registry.ping), settings.readiness),
            guard,
            Tracing(tracer, TraceSampler(registry, catalog, settings)) if tracer else None,
            Refusals(client, prefix),
        )
