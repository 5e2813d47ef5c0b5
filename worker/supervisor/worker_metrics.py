"""GET /metrics of a worker: its own instances, GPUs and memory, also while Redis is away.

What requests became and cost is counted in Redis, and said by the API.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import get_args
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import start_wsgi_server

from shared.exposition.devices import DeviceFigures
from shared.exposition.families import BY_VERSION, Family, Figures, Filled
from shared.registry.device_report import DeviceReport
from shared.registry.snapshot import State
from shared.settings import Settings
from worker.meter import Meter
from worker.supervisor.instance_slot import InstanceSlot

log = logging.getLogger(__name__)

BY_INSTANCE = (*BY_VERSION, "device", "instance_id")
OF_METER: dict[Family, Callable[[Meter], float]] = {
    Family(
        "counter", "ferry_worker_requests", "Requests that an instance answered.", BY_INSTANCE
    ): lambda it: it.answered_count,
    Family("counter", "ferry_worker_rows", "Rows of its batches.", BY_INSTANCE): lambda it: (
        it.row_count
    ),
    Family("counter", "ferry_worker_batches", "Its batches.", BY_INSTANCE): lambda it: (
        it.batch_count
    ),
    Family(
        "gauge", "ferry_worker_last_batch_seconds", "How long its last batch took.", BY_INSTANCE
    ): lambda it: it.last_batch_seconds,
    Family(
        "gauge",
        "ferry_worker_row_limit",
        "Rows at once that its memory holds; 0 for all that the model takes.",
        BY_INSTANCE,
    ): lambda it: it.row_limit,
}
"""Figures begin anew with each process, which has an id of its own."""
WORKER_INSTANCES = Family(
    "gauge", "ferry_worker_instances", "Instances of this worker by state.", (*BY_VERSION, "state")
)
HOST_MEMORY = Family("gauge", "nv_cpu_memory_total_bytes", "CPU total memory (RAM), in bytes", ())
HOST_MEMORY_USED = Family(
    "gauge", "nv_cpu_memory_used_bytes", "CPU used memory (RAM), in bytes", ()
)
MEMINFO = Path("/proc/meminfo")


class WorkerFigures(Figures):
    """The slots of one supervisor, and its machine's memory."""

    families = (WORKER_INSTANCES, *OF_METER, HOST_MEMORY, HOST_MEMORY_USED)

    def __init__(self, slots: Callable[[], Iterable[InstanceSlot]]) -> None:
        """Ask `slots` at each scrape."""
        self._slots = slots

    def fill(self, families: Filled) -> None:
        """Add the figures of this moment."""
        slots = list(self._slots())
        states = Counter((*_version(slot), slot.state) for slot in slots)
        for version in sorted({_version(slot) for slot in slots}):
            for state in get_args(State):
                count = float(states[*version, state])
                families[WORKER_INSTANCES.name].add_metric([*version, state], count)
        for slot in slots:
            row = [*_version(slot), slot.placement.device, slot.instance_id]
            for family, read in OF_METER.items():
                families[family.name].add_metric(row, float(read(slot.meter)))
        total, available = host_memory()
        families[HOST_MEMORY.name].add_metric([], total)
        families[HOST_MEMORY_USED.name].add_metric([], total - available)


def host_memory() -> tuple[float, float]:
    """Return how much memory the machine has, and how much of it is available, in bytes."""
    lines = (line.split() for line in MEMINFO.read_text().splitlines())
    kilobytes = {words[0]: float(words[1]) for words in lines}
    return 1024 * kilobytes["MemTotal:"], 1024 * kilobytes["MemAvailable:"]


def _version(slot: InstanceSlot) -> tuple[str, str]:
    return slot.model.spec.name, slot.model.spec.version


def serve_metrics(
    settings: Settings,
    slots: Callable[[], Iterable[InstanceSlot]],
    devices: Callable[[], DeviceReport],
) -> tuple[WSGIServer, threading.Thread] | None:
    """Answer scrapes in threads of its own; a port of 0, or one that is taken, has none.

    Several workers of a machine have one setting, and the others go on without.
    """
    host, port = settings.host, settings.metrics_port
    if not port:
        return None
    registry = CollectorRegistry()
    registry.register(WorkerFigures(slots))
    registry.register(DeviceFigures(lambda: [devices()]))
    ProcessCollector(registry=registry)
    try:
        return start_wsgi_server(port, host, registry)
    except OSError as error:
        log.warning(
            "FERRY_METRICS_PORT=%d: cannot listen at %s, this worker has no /metrics: %s",
            port,
            host,
            error,
        )
        return None
