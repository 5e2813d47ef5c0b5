"""Model versions: which serve, with what share of the requests, and why others do not."""

from __future__ import annotations

from collections.abc import Callable

from shared.exposition.families import BY_VERSION, Family, Figures, Filled
from shared.registry.repository_index import UNLOADED, repository_index
from shared.registry.snapshot import Snapshot

MODEL_READY = Family(
    "gauge", "ferry_model_ready", "1 for a version that can answer, else 0.", BY_VERSION
)
MODEL_SHARE = Family(
    "gauge",
    "ferry_model_request_share",
    "Which part of the requests that name no version a version gets, from 0 to 1.",
    BY_VERSION,
)
LOAD_FAILURE = Family(
    "gauge",
    "ferry_model_load_failure",
    "1 for what cannot be loaded, with the reason; version is empty for a whole model.",
    (*BY_VERSION, "reason"),
)
TAKEN_BACK = Family(
    "gauge",
    "ferry_model_taken_back",
    "1 for a version that took over and failed its first requests, so that they went back.",
    BY_VERSION,
)
MODEL_WARNING = Family(
    "gauge",
    "ferry_model_warning",
    "1 for a version that serves and has something wrong with it, as that it is on the CPU "
    "of a machine with GPUs; with what.",
    (*BY_VERSION, "reason"),
)
MODEL_DEGRADED = Family(
    "gauge",
    "ferry_model_degraded",
    "1 for a version that answers with fewer instances than it is to have.",
    BY_VERSION,
)
DEVICE_FAULTS = Family(
    "gauge",
    "ferry_device_faults",
    "How often a device took no more work of an instance, since its worker started.",
    ("host", "device"),
)
DEVICE_CLOSED = Family(
    "gauge",
    "ferry_device_closed",
    "1 for a device on which nothing is started, with the reason.",
    ("host", "device", "reason"),
)


class VersionFigures(Figures):
    """The registry's snapshot."""

    families = (
        MODEL_READY,
        MODEL_SHARE,
        LOAD_FAILURE,
        TAKEN_BACK,
        MODEL_WARNING,
        MODEL_DEGRADED,
        DEVICE_FAULTS,
        DEVICE_CLOSED,
    )

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        """Take a `snapshot` at each scrape."""
        self._snapshot = snapshot

    def fill(self, families: Filled) -> None:
        """Add what the snapshot says; raises RedisUnavailable."""
        snapshot = self._snapshot()
        for key, said in snapshot.warnings.items():
            families[MODEL_WARNING.name].add_metric([*_version(key), said], 1.0)
        for key in snapshot.degraded:
            families[MODEL_DEGRADED.name].add_metric(_version(key), 1.0)
        for place, count in snapshot.device_faults.items():
            families[DEVICE_FAULTS.name].add_metric([*place], float(count))
        for place, reason in snapshot.closed_devices.items():
            families[DEVICE_CLOSED.name].add_metric([*place, reason], 1.0)
        for entry in repository_index(snapshot):
            _add_entry(families, snapshot, entry)


def _add_entry(families: Filled, snapshot: Snapshot, entry: dict[str, str]) -> None:
    name, version, state = entry["name"], entry.get("version", ""), entry["state"]
    if version:
        families[MODEL_READY.name].add_metric([name, version], float(state == "READY"))
        families[MODEL_SHARE.name].add_metric([name, version], _share(snapshot, name, version))
        if _is_taken_back(snapshot, name, version):
            families[TAKEN_BACK.name].add_metric([name, version], 1.0)
    if state != "READY" and entry["reason"] not in ("", UNLOADED):
        families[LOAD_FAILURE.name].add_metric([name, version, entry["reason"]], 1.0)


def _version(key: str) -> list[str]:
    """Return a `ModelSpec.key`'s name and version."""
    return key.partition("@")[0].split("/")


def _is_taken_back(snapshot: Snapshot, name: str, version: str) -> bool:
    serving = snapshot.served.get(name)
    return serving is not None and version in serving.taken_back


def _share(snapshot: Snapshot, name: str, version: str) -> float:
    serving = snapshot.served.get(name)
    if serving is None or not serving.split:
        return float(serving is not None and version == serving.default)
    return serving.split.get(version, 0) / sum(serving.split.values())
