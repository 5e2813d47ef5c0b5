"""Queues and instances, of each model version, as they are at the moment."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import get_args

from redis import Redis

from shared.exposition.families import BY_VERSION, Family, Figures, Filled
from shared.model_spec import ModelSpec
from shared.operations.queue_figures import QueueFigures, queue_figures
from shared.registry.registry import Registry
from shared.registry.snapshot import InstanceRecord, State

QUEUE_DEPTH = Family(
    "gauge", "ferry_queue_requests", "Requests that wait for an instance.", BY_VERSION
)
QUEUE_BYTES = Family("gauge", "ferry_queue_bytes", "Bytes of the bodies that wait.", BY_VERSION)
QUEUE_OLDEST = Family(
    "gauge",
    "ferry_queue_oldest_seconds",
    "For how long the oldest of them waits; 0 when none does.",
    BY_VERSION,
)
IN_FLIGHT = Family(
    "gauge", "ferry_requests_in_flight", "Requests that instances have claimed.", BY_VERSION
)
DEAD_LETTERS = Family(
    "gauge",
    "ferry_dead_letters",
    "Requests that were given up and are kept, for `ferry dead`.",
    BY_VERSION,
)
BYTES_KEPT = Family(
    "gauge",
    "ferry_kept_bytes",
    "Bytes that are kept for who asks later, of FERRY_MAX_KEPT_BYTES.",
    BY_VERSION,
)
PENDING_REQUESTS = Family(
    "gauge",
    "nv_inference_pending_request_count",
    "Instantaneous number of pending requests awaiting execution per-model.",
    BY_VERSION,
)
OF_QUEUE: dict[Family, Callable[[QueueFigures], float]] = {
    QUEUE_DEPTH: lambda it: it.depth,
    QUEUE_BYTES: lambda it: it.bytes,
    QUEUE_OLDEST: lambda it: it.oldest_seconds,
    IN_FLIGHT: lambda it: it.in_flight,
    DEAD_LETTERS: lambda it: it.dead_count,
    BYTES_KEPT: lambda it: it.kept_bytes,
    PENDING_REQUESTS: lambda it: it.depth,
}
INSTANCES = Family(
    "gauge", "ferry_instances", "Instances of living workers by state.", (*BY_VERSION, "state")
)
INSTANCE_MEMORY = Family(
    "gauge",
    "ferry_instance_device_memory_bytes",
    "What an instance took of its GPU's memory once it was warm.",
    (*BY_VERSION, "instance", "host", "device", "uuid"),
)


class QueueStates(Figures):
    """The queues, and who takes from them."""

    families = (*OF_QUEUE, INSTANCES, INSTANCE_MEMORY)

    def __init__(
        self,
        client: Redis,
        prefix: str,
        registry: Registry,
        versions: Callable[[], Iterable[ModelSpec]],
    ) -> None:
        """Ask `client` at each scrape, of all `versions` that there are then."""
        self._client = client
        self._prefix = prefix
        self._registry = registry
        self._versions = versions

    def fill(self, families: Filled) -> None:
        """Add the figures of all versions; raises RedisUnavailable."""
        specs = list(self._versions())
        records, alive = self._registry.instances()
        held_by: dict[str, list[str]] = defaultdict(list)
        for each in records:
            held_by[each.model_key].append(each.id)
        queues = queue_figures(self._client, self._prefix, specs, held_by)
        for spec, queue in zip(specs, queues, strict=True):
            for family, read in OF_QUEUE.items():
                families[family.name].add_metric([spec.name, spec.version], float(read(queue)))
        _add_instances(families, specs, [each for each in records if each.supervisor in alive])


def _add_instances(
    families: Filled, specs: Iterable[ModelSpec], living: list[InstanceRecord]
) -> None:
    counts = Counter((each.model, each.version, each.state) for each in living)
    places = {(spec.name, spec.version) for spec in specs}
    for place in sorted(places | {(each.model, each.version) for each in living}):
        for state in get_args(State):
            families[INSTANCES.name].add_metric([*place, state], float(counts[*place, state]))
    for each in living:
        if each.uuid and each.state == "ready":
            where = [each.id, each.host, each.device, each.uuid]
            families[INSTANCE_MEMORY.name].add_metric(
                [each.model, each.version, *where], float(each.memory_bytes)
            )
