"""The state of everything at one moment, as the operations page shows it.

It is in sections, so that a page is sent those alone in which something changed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from api.pages.disagreements import shown_disagreement
from api.services import Services
from shared.bodies.turns import let_others
from shared.drift.findings import FEWEST_ROWS, LatestDrift, VersionDrift
from shared.errors import (
    ClientLeft,
    FerryError,
    ModelCrashed,
    ModelFailed,
    QueueFull,
    RequestExpired,
    UnknownModel,
    all_errors,
)
from shared.history.figures import HistoryPoint, Moment, VersionCounts
from shared.inputs.texts import TokenizerCache
from shared.jobs.store import JobStore
from shared.operations.dead_letters import DeadLetter, DeadLetters
from shared.operations.shadow_comparison import Comparisons
from shared.registry.desired_state import Serving
from shared.registry.repository_index import repository_index
from shared.registry.snapshot import InstanceRecord, Snapshot

ENDED_BY: Mapping[str, type[FerryError]] = {
    "failed": ModelFailed, "dead": ModelCrashed, "expired": RequestExpired,
    "rejected": RequestExpired, "cancelled": ClientLeft, "full": QueueFull,
}  # fmt: skip
"""The errors by which requests are answered that a version did not answer, as they are counted."""
STATUSES = {error.code: error.status for error in all_errors()}
LISTED_LETTERS = 50
LISTED_JOBS = 20
SELDOM_SECONDS = 5.0
"""Between two looks at what costs more than it changes: dead letters, devices, shadows."""
Sections = dict[str, Any]


class Operations:
    """Looks at everything, at some of it less often."""

    def __init__(self, services: Services) -> None:
        """Read nothing yet."""
        self._services = services
        self._comparisons = Comparisons(services.client, services.settings.key_prefix)
        self.letters = DeadLetters(services.client, services.settings)
        self._jobs = JobStore(services.client, services.settings)
        self._drift = LatestDrift(services.client, services.settings.key_prefix, services.registry)
        self._seldom: Sections = {}
        self._looked_at = float("-inf")
        self._dead_count = -1

    def look(self) -> tuple[Sections, dict[str, Any]]:
        """Return the sections, and each version's counts; raises RedisUnavailable."""
        snapshot = self._services.catalog.snapshot()
        moment = self._services.recorder.last() or Moment(0.0, {})
        records, alive = self._services.registry.instances()
        if time.monotonic() - self._looked_at > SELDOM_SECONDS:
            self._looked_at = time.monotonic()
            self._look_at_the_rest(snapshot, moment)
        living = [shown_instance(each) for each in records if each.supervisor in alive]
        sections = {
            "models": shown_models(snapshot),
            "instances": sorted(living, key=lambda each: str(each["id"])),
            **self._seldom,
        }
        return sections, {key: shown_counts(counts) for key, counts in moment.versions.items()}

    def dead(self, start: int) -> dict[str, Any]:
        """Return how many requests are dead, and some of them from `start` on, newest first."""
        letters = self.letters.all()
        shown = letters[start : start + LISTED_LETTERS]
        return {"count": len(letters), "start": start, "letters": [shown_letter(x) for x in shown]}

    def disagreements(self, name: str, tokenizers: TokenizerCache) -> dict[str, Any]:
        """Return what a model's shadow answered otherwise; raises UnknownModel without a shadow."""
        snapshot = self._services.catalog.snapshot()
        serving, specs = snapshot.served.get(name), snapshot.models.get(name, {})
        pair = (serving.default, serving.shadow) if serving else ("", "")
        served, shadow = (specs.get(version) for version in pair)
        if served is None or shadow is None:
            raise UnknownModel(f"'{name}' has no shadow now")
        examples = []
        for found in self._comparisons.kept(shadow.key, served.version):
            examples.append(shown_disagreement(found, served, shadow, tokenizers))
            let_others()  # a picture takes tens of milliseconds
        return {
            "model": name, "version": served.version, "shadow": shadow.version,
            "examples": examples,
        }  # fmt: skip

    def _look_at_the_rest(self, snapshot: Snapshot, moment: Moment) -> None:
        dead_count = sum(counts.dead_count for counts in moment.versions.values())
        if dead_count != self._dead_count:
            self._seldom["dead"] = self.dead(0)
            self._dead_count = dead_count
        if self._services.settings.jobs:
            self._seldom["jobs"] = self._jobs.all(LISTED_JOBS)
        specs = [spec for versions in snapshot.models.values() for spec in versions.values()]
        self._seldom["drift"] = [shown_drift(each) for each in self._drift.of(specs)]
        self._seldom["refused"] = shown_refusals(self._services.refusals.counted())
        self._seldom["devices"] = [
            {"host": report.host, **device.model_dump(mode="json"), "place": device.place}
            for report in self._services.registry.devices().values()
            for device in report.devices
        ]
        self._seldom["shadows"] = [
            {"model": name, "shadow": serving.shadow, "version": serving.default, **found._asdict()}
            for name, serving in sorted(snapshot.served.items())
            if serving.shadow
            for found in [self._compared(snapshot, name, serving)]
        ]

    def _compared(self, snapshot: Snapshot, name: str, serving: Serving) -> Any:
        spec = snapshot.models[name].get(serving.shadow)
        key = spec.key if spec is not None else f"{name}/{serving.shadow}"
        return self._comparisons.read(key, serving.default)


def shown_models(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Return each model's versions: state, reason, and what part of the requests they get."""
    found: dict[str, dict[str, Any]] = {}
    for entry in repository_index(snapshot):
        name, version = entry["name"], entry.get("version", "")
        serving = snapshot.served.get(name)
        model = found.setdefault(name, {"name": name, "versions": []})
        model["note"] = snapshot.notes.get(name, "")
        if not version:
            model["reason"], model["state"] = entry["reason"], entry["state"]
            continue
        spec = snapshot.models.get(name, {}).get(version)
        row = {"version": version, "state": entry["state"], "reason": entry["reason"]}
        key = spec.key if spec is not None else f"{name}/{version}"
        warning = snapshot.warnings.get(key, "") or snapshot.degraded.get(key, "")
        model["versions"].append(row | {"key": key, "warning": warning} | part_of(serving, version))
    return [found[name] for name in sorted(found)]


def part_of(serving: Serving | None, version: str) -> dict[str, Any]:
    """Return a version's part: its share of the requests, and what it is besides."""
    if serving is None:
        return {"share": 0.0, "role": ""}
    total = sum(serving.split.values())
    share = serving.split.get(version, 0) / total if total else float(version == serving.default)
    roles = {serving.canary: "canary", serving.shadow: "shadow", serving.default: "serves"}
    taken_back = {each: "taken back" for each in serving.taken_back}
    return {"share": share, "role": (taken_back | roles).get(version, "")}


def shown_instance(record: InstanceRecord) -> dict[str, Any]:
    """Return an instance's row; the last part of its id counts how often its place was filled."""
    place = record.id.rpartition(".")[2]
    return {
        "id": record.id,
        "model": record.model,
        "version": record.version,
        "host": record.host,
        "device": record.device,
        "pid": record.pid,
        "state": record.state,
        "reason": record.reason or record.note or record.device_closed,
        "restarts": max(0, int(place) - 1) if place.isdigit() else 0,
        "batch_rows": record.last_batch_rows,
        "batch_seconds": round(record.last_batch_seconds, 6),
        "requests_per_second": round(record.requests_per_second, 1),
        "answered": record.answered_count,
        "memory_bytes": record.memory_bytes,
    }


def shown_counts(counts: VersionCounts) -> dict[str, Any]:
    """Return a version's counts as its panel shows them; the rates come with the points."""
    shown = counts._asdict() | {"sizes": {str(rows): n for rows, n in counts.sizes.items()}}
    del shown["latencies"]
    return shown | {"errors": shown_errors(counts.ended)}


def shown_errors(ended: Mapping[str, int]) -> dict[str, int]:
    """Return how many requests were answered by each error, called as `503 queue_full`."""
    found: dict[str, int] = {}
    for word, error in ENDED_BY.items():
        if count := ended.get(word, 0):
            name = f"{error.status} {error.code}"
            found[name] = found.get(name, 0) + count
    return dict(sorted(found.items()))


def shown_refusals(counted: Mapping[str, int]) -> dict[str, int]:
    """Return how many requests never reached a queue, by the error that answered them."""
    known = sorted(counted.keys() & STATUSES.keys())
    return {f"{STATUSES[code]} {code}": counted[code] for code in known}


def shown_drift(version: VersionDrift) -> dict[str, Any]:
    """Return a version's row: the signals that drift, and what changed in them."""
    rows = max([each.rows for each in version.signals], default=0)
    drifting = [each for each in version.signals if each.drifts]
    return {
        "model": version.spec.name,
        "version": version.spec.version,
        "rows": rows,
        "missing": max(0, FEWEST_ROWS - rows),
        "signals": [
            {"signal": each.signal, "psi": round(each.psi, 3), "limit": round(each.limit, 3),
             "change": each.change}
            for each in drifting
        ],
    }  # fmt: skip


def shown_letter(letter: DeadLetter) -> dict[str, Any]:
    """Return a dead letter's row."""
    times = "once" if letter.attempts == 1 else f"{letter.attempts} times"
    return {
        "id": letter.id,
        "model": letter.model_key,
        "rows": letter.rows,
        "died": round(letter.died, 3),
        "waited_seconds": round(letter.died - letter.enqueued, 3),
        "instance": letter.instance,
        "reason": f"the process that ran it died, {times}",
    }


def shown_point(point: HistoryPoint) -> list[Any]:
    """Return a point as the charts take it: the time, and each version's rates."""
    rows: Mapping[str, Any] = point.versions
    return [round(point.at, 1), {key: list(rates) for key, rates in rows.items()}]
