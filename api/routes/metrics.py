"""GET /metrics: which versions serve, in Prometheus's text format.

The figures live in Redis and are read when they are asked for, so every process answers the same
and nothing is left behind by processes that ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from flask import Blueprint, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily

from api.routes.flask_side import services
from shared.registry.device_report import Device, DeviceReport
from shared.registry.repository_index import UNLOADED, repository_index
from shared.registry.snapshot import InstanceRecord, Snapshot

blueprint = Blueprint("metrics", __name__)

DEVICE_FIGURES: dict[str, tuple[str, Callable[[Device], float | None]]] = {
    "memory_total_bytes": ("Memory of a GPU.", lambda it: it.memory_bytes or None),
    "memory_used_bytes": ("What all processes took of it.", lambda it: it.used_bytes),
    "utilisation_percent": (
        "Share of the last second in which it computed.", lambda it: it.utilisation_percent
    ),
    "power_watts": ("Electric power that it takes.", lambda it: it.power_watts),
    "temperature_celsius": ("Temperature of the chip.", lambda it: it.temperature_celsius),
    "uncorrected_errors": (
        "Errors of its memory that could not be corrected, since the driver was loaded.",
        lambda it: it.uncorrected_errors,
    ),
    "faulty": ("1 where its driver holds a fault against it.", lambda it: float(bool(it.fault))),
}  # fmt: skip
"""By the end of their names: what a figure is, and how it is read."""


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
        warning = GaugeMetricFamily(
            "ferry_model_warning",
            "1 for a version that serves and has something wrong with it, as that it is on the CPU "
            "of a machine with GPUs; with what.",
            labels=[*labels, "reason"],
        )
        for key, said in self._snapshot.warnings.items():
            name, _, version = key.partition("@")[0].partition("/")
            warning.add_metric([name, version, said], 1.0)
        for entry in repository_index(self._snapshot):
            name, version = entry["name"], entry.get("version", "")
            if version:
                ready.add_metric([name, version], float(entry["state"] == "READY"))
                share.add_metric([name, version], self._share(name, version))
                if self._is_taken_back(name, version):
                    taken_back.add_metric([name, version], 1.0)
            if entry["state"] != "READY" and entry["reason"] not in ("", UNLOADED):
                failure.add_metric([name, version, entry["reason"]], 1.0)
        yield from (ready, share, failure, taken_back, warning, self._degraded(), *self._devices())

    def _degraded(self) -> GaugeMetricFamily:
        family = GaugeMetricFamily(
            "ferry_model_degraded",
            "1 for a version that answers with fewer instances than it is to have.",
            labels=["model", "version"],
        )
        for key in self._snapshot.degraded:
            family.add_metric(key.partition("@")[0].split("/"), 1.0)
        return family

    def _devices(self) -> Iterator[GaugeMetricFamily]:
        """Return how often each device failed, and which ones are closed."""
        faults = GaugeMetricFamily(
            "ferry_device_faults",
            "How often a device took no more work of an instance, since its worker started.",
            labels=["host", "device"],
        )
        closed = GaugeMetricFamily(
            "ferry_device_closed",
            "1 for a device on which nothing is started, with the reason.",
            labels=["host", "device", "reason"],
        )
        for place, count in self._snapshot.device_faults.items():
            faults.add_metric([*place], float(count))
        for place, reason in self._snapshot.closed_devices.items():
            closed.add_metric([*place, reason], 1.0)
        yield from (faults, closed)

    def _is_taken_back(self, name: str, version: str) -> bool:
        serving = self._snapshot.served.get(name)
        return serving is not None and version in serving.taken_back

    def _share(self, name: str, version: str) -> float:
        serving = self._snapshot.served.get(name)
        if serving is None or not serving.split:
            return float(serving is not None and version == serving.default)
        return serving.split.get(version, 0) / sum(serving.split.values())


class DeviceStates:
    """A collector of the GPUs that workers see, and of what instances take there."""

    def __init__(
        self, reports: Mapping[str, DeviceReport], instances: Sequence[InstanceRecord]
    ) -> None:
        """Read nothing more: each supervisor's report, and the instances of those that live."""
        self._reports = reports
        self._instances = instances

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Return each device's figures, as far as NVML has them, and why some are not used."""
        labels = ["host", "device", "uuid", "name"]
        families = {
            name: GaugeMetricFamily(f"ferry_device_{name}", text, labels=labels)
            for name, (text, _) in DEVICE_FIGURES.items()
        }
        unused = GaugeMetricFamily(
            "ferry_device_unusable",
            "1 for a worker that cannot use GPUs of its machine, with the reason.",
            labels=["host", "reason"],
        )
        contested = GaugeMetricFamily(
            "ferry_device_contested",
            "1 for a GPU on which two workers place models, with the other one.",
            labels=["host", "uuid", "by"],
        )
        for report in self._reports.values():
            for uuid, by in report.contested.items():
                contested.add_metric([report.host, uuid, by], 1.0)
            if report.reason:
                unused.add_metric([report.host, report.reason], 1.0)
            for device in report.devices:
                row = [report.host, device.place, device.uuid, device.name]
                for name, (_, read) in DEVICE_FIGURES.items():
                    if (value := read(device)) is not None:
                        families[name].add_metric(row, float(value))
        yield from (*families.values(), unused, contested, self._memory())

    def _memory(self) -> GaugeMetricFamily:
        taken = GaugeMetricFamily(
            "ferry_instance_device_memory_bytes",
            "What an instance took of its GPU's memory once it was warm.",
            labels=["model", "version", "instance", "host", "device", "uuid"],
        )
        for each in self._instances:
            if each.uuid and each.state == "ready":
                place = [each.id, each.host, each.device, each.uuid]
                taken.add_metric([each.model, each.version, *place], float(each.memory_bytes))
        return taken


@blueprint.get("/metrics")
def metrics() -> Response:
    """Answer the state of every model version and GPU; 503 without Redis."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ModelStates(services().catalog.snapshot()))
    reports = services().registry.devices()
    records, alive = services().registry.instances()
    registry.register(DeviceStates(reports, [each for each in records if each.supervisor in alive]))
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)
