"""Models, instances and signs of life: written by supervisors, read by every API process."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple, cast

import redis

from shared.model_spec import ModelSpec
from shared.registry.desired_state import Serving, SupervisorReport
from shared.registry.device_report import DeviceReport
from shared.registry.keys import TRACE_COUNT, RegistryKeys, living_supervisors, read_changes, ring
from shared.registry.snapshot import InstanceRecord, Snapshot, snapshot_of
from shared.wire.client import asking

# fast: what is idle writes the same row again and again.
_record = lru_cache(1024)(InstanceRecord.model_validate_json)
# fast: every process reads them three times a second while it is asked, and they hardly change.
_spec = lru_cache(1024)(ModelSpec.model_validate_json)


class Look(NamedTuple):
    """What a supervisor looks at again and again."""

    changes: int
    """The number of `Registry.changes`."""
    log: dict[str, int]
    """The log settings that were set."""
    misses: bool
    """Whether a supervisor that lived at the last `Registry.standing` has no sign of life now."""
    was_alive: bool
    """Whether the sign of life that was renewed was still there."""
    found_count: int
    """How many of the keys exist that were asked for."""


class Standing(NamedTuple):
    """What a supervisor looks at when any of it may have changed."""

    changes: int
    """The number of `Registry.changes`."""
    records: list[InstanceRecord]
    alive: set[str]
    """The ids of the supervisors that live, of all that have instances or a report."""
    reported: set[str]
    """The ids of those that have a report."""


class Registry:
    """The registry's keys; every method raises RedisUnavailable when Redis fails."""

    def __init__(self, client: redis.Redis, prefix: str) -> None:
        """Use `client`, naming keys under `prefix`."""
        self._client = client
        self._keys = RegistryKeys(prefix)
        self._seen_alive: set[str] = set()

    def ping(self) -> None:
        """Raise RedisUnavailable unless Redis answers."""
        asking(self._client.ping)

    def check_writes(self) -> None:
        """Raise RedisUnavailable, with Redis's own reason, unless it takes what is written."""
        asking(lambda: self._client.set(self._keys.probe, "", px=1000))

    def changes(self) -> int:
        """Return a number that is another one once requests may go elsewhere."""
        return read_changes(self._client, self._keys)

    def add_model(self, spec: ModelSpec) -> None:
        """Register one version; `ready` says separately whether anybody serves it."""
        self.add_models([spec])

    def add_models(self, specs: Iterable[ModelSpec]) -> None:
        """Register versions, in one command."""
        rows: dict[Any, Any] = {spec.key: spec.model_dump_json() for spec in specs}
        if rows:
            asking(lambda: self._client.hset(self._keys.models, mapping=rows))

    def remove_model(self, model_key: str) -> None:
        """Forget one version."""
        asking(lambda: self._client.hdel(self._keys.models, model_key))
        asking(lambda: self._client.hdel(self._keys.pages, model_key))
        asking(lambda: self._client.hdel(self._keys.references, model_key))

    def model_keys(self) -> set[str]:
        """Return `name/version` of every registered model."""
        return {key.decode() for key in asking(lambda: self._client.hkeys(self._keys.models))}

    def keep_asset(self, content: bytes) -> None:
        """Store a file's content unless it is there already."""
        key = self._keys.assets + asset_digest(content)
        if not asking(lambda: self._client.exists(key)):
            asking(lambda: self._client.set(key, content))

    def asset(self, digest: str) -> bytes | None:
        """Return the content stored under `digest`, None when it is not there."""
        return cast("bytes | None", asking(lambda: self._client.get(self._keys.assets + digest)))

    def keep_page(self, model_key: str, page: bytes) -> None:
        """Store the page about how a version was made fast."""
        asking(lambda: self._client.hset(self._keys.pages, model_key, page))

    def page(self, model_key: str) -> bytes | None:
        """Return a version's page, None where there is none."""
        return cast("bytes | None", asking(lambda: self._client.hget(self._keys.pages, model_key)))

    def keep_reference(self, model_key: str, reference: str) -> None:
        """Store what a version's rows and answers are compared with, see shared/drift/."""
        asking(lambda: self._client.hset(self._keys.references, model_key, reference))

    def references(self) -> dict[str, bytes]:
        """Return all versions' references by `ModelSpec.key`."""
        found = asking(lambda: self._client.hgetall(self._keys.references))
        return {key.decode(): reference for key, reference in found.items()}

    def put_instance(self, record: InstanceRecord) -> None:
        """Register an instance or its new state."""
        self.put_instances([record])

    def put_instances(self, records: Iterable[InstanceRecord]) -> None:
        """Register instances or their new states, in one command."""
        rows: dict[Any, Any] = {record.id: record.model_dump_json() for record in records}
        if rows:
            asking(lambda: self._client.hset(self._keys.instances, mapping=rows))

    def drop_instance(self, instance_id: str) -> None:
        """Forget an instance that ended and whose work was put back."""
        asking(lambda: self._client.hdel(self._keys.instances, instance_id))

    def beat(self, supervisor_id: str, ttl_seconds: float) -> bool:
        """Renew a supervisor's sign of life, for `ttl_seconds`; tell whether it was still there."""
        key, ttl_ms = self._keys.supervisors + supervisor_id, int(1000 * ttl_seconds)
        return asking(lambda: self._client.set(key, "1", px=ttl_ms, get=True)) is not None

    def stop_beating(self, supervisor_id: str) -> None:
        """Remove a supervisor's sign of life, at its orderly end."""
        asking(lambda: self._client.delete(self._keys.supervisors + supervisor_id))

    def put_devices(self, supervisor_id: str, report: DeviceReport) -> None:
        """Register what a supervisor sees of its machine's GPUs."""
        row = report.model_dump_json()
        asking(lambda: self._client.hset(self._keys.devices, supervisor_id, row))

    def devices(self) -> dict[str, DeviceReport]:
        """Return what each supervisor that lives sees of its machine's GPUs."""
        rows = asking(lambda: self._client.hgetall(self._keys.devices))
        alive = self._living(name.decode() for name in rows)
        return {
            name.decode(): DeviceReport.model_validate_json(row)
            for name, row in rows.items()
            if name.decode() in alive
        }

    def log_changes(self) -> dict[str, int]:
        """Return the log settings that were set."""
        return _numbers(asking(lambda: self._client.hgetall(self._keys.log)))

    def change_log(self, changes: dict[str, int]) -> None:
        """Set some log settings and leave the others."""
        asking(lambda: self._client.hset(self._keys.log, mapping=cast("dict[Any, Any]", changes)))
        ring(self._client, self._keys)

    def trace_changes(self) -> dict[str, dict[str, list[str]]]:
        """Return the trace settings that were set, by model; those of all models under ""."""
        return _trace_changes(asking(lambda: self._client.hgetall(self._keys.trace)))

    def change_trace(self, model: str, settings: Mapping[str, list[str]]) -> None:
        """Set a model's trace settings and leave the others; an empty one is forgotten."""
        kept = {f"{model}/{name}": json.dumps(value) for name, value in settings.items() if value}
        gone = [f"{model}/{name}" for name, value in settings.items() if not value]
        if kept:
            asking(
                lambda: self._client.hset(self._keys.trace, mapping=cast("dict[Any, Any]", kept))
            )
        if gone:
            asking(lambda: self._client.hdel(self._keys.trace, *gone))
        if TRACE_COUNT in settings:
            asking(lambda: self._client.hdel(self._keys.traced, model))
        asking(lambda: self._client.incr(self._keys.changes))  # so that requests look within 0.1 s

    def count_traced(self, model: str) -> int:
        """Count one more request that is traced, and return how many there are since it was set.

        `model` is whose trace_count it takes of, empty for that of all models.
        """
        return int(asking(lambda: self._client.hincrby(self._keys.traced, model, 1)))

    def traced(self, model: str) -> int:
        """Return how many requests were traced of a trace_count, or tried to be."""
        return int(asking(lambda: self._client.hget(self._keys.traced, model)) or 0)

    def instances(self) -> tuple[list[InstanceRecord], set[str]]:
        """Return all instances and the ids of the supervisors that live."""
        standing = self.standing()
        return standing.records, standing.alive

    def ready_instances(self, model_key: str) -> int:
        """Return how many instances of a version's content answer requests."""
        records, alive = self.instances()
        return sum(
            each.model_key == model_key and each.state == "ready" and each.supervisor in alive
            for each in records
        )

    def standing(self) -> Standing:
        """Return instances, and the signs of life of their supervisors and those that report."""
        keys = self._keys
        changes, rows, reports = self._read(
            ("GET", keys.changes), ("HVALS", keys.instances), ("HKEYS", keys.reports)
        )
        records = [_record(row) for row in rows]
        reported = {name.decode() for name in reports}
        # Behind what they are compared with: an instance is recorded by who lives.
        alive = self._living({record.supervisor for record in records} | reported)
        self._seen_alive = alive
        return Standing(int(changes or 0), records, alive, reported)

    def look(self, queues: Sequence[str] = (), beats: tuple[str, float] | None = None) -> Look:
        """Look at what changes while nothing is said, and at which keys of these `queues` exist.

        It `beats` first if told so: renews the sign of life of a supervisor, for so many seconds.

        fast: one round trip of few commands, for which an idle machine wakes, and Redis does too.
        """
        keys, seen = self._keys, self._seen_alive
        asked: list[tuple[str, ...]] = [("GET", keys.changes), ("HGETALL", keys.log)]
        asked.append(("EXISTS", keys.supervisors, *(keys.supervisors + name for name in seen)))
        asked.append(("EXISTS", keys.supervisors, *queues))
        if beats:
            sign, milliseconds = keys.supervisors + beats[0], str(int(1000 * beats[1]))
            asked.insert(0, ("SET", sign, "1", "PX", milliseconds, "GET"))
        *before, changes, log, signs, found = self._read(*asked)
        was_alive = before != [None]
        return Look(int(changes or 0), _numbers(log), int(signs) < len(seen), was_alive, int(found))

    def lacks(self, models: set[str], instances: set[str], assets: Sequence[bytes]) -> bool:
        """Tell whether any of these is not registered, or its file is not kept."""
        digests = {asset_digest(content) for content in assets}
        known, registered, kept = self._read(
            ("HKEYS", self._keys.models), ("HKEYS", self._keys.instances),
            ("EXISTS", self._keys.assets, *(self._keys.assets + digest for digest in digests)),
        )  # fmt: skip
        wanted = {name.encode() for name in models}, {name.encode() for name in instances}
        return not (wanted[0] <= set(known) and wanted[1] <= set(registered)) or (
            int(kept) < len(digests)
        )

    def snapshot(self) -> Snapshot:
        """Return the served versions, the traffic, and the reasons why others do not serve."""
        keys = self._keys
        changes, specs, rows, log, served, reports, trace = self._read(
            # First: what is read behind it holds at least so many changes.
            ("GET", keys.changes), ("HVALS", keys.models), ("HVALS", keys.instances),
            ("HGETALL", keys.log), ("HGETALL", keys.served), ("HGETALL", keys.reports),
            ("HGETALL", keys.trace),
        )  # fmt: skip
        records = [_record(row) for row in rows]
        reported = {
            name.decode(): SupervisorReport.model_validate_json(row)
            for name, row in reports.items()
        }
        alive = self._living({record.supervisor for record in records} | reported.keys())
        found = snapshot_of(
            [_spec(row) for row in specs],
            [record for record in records if record.supervisor in alive],
            {name.decode(): Serving.model_validate_json(row) for name, row in served.items()},
            [report for name, report in reported.items() if name in alive],
            _numbers(log),
            int(changes or 0),
        )
        return replace(found, trace=_trace_changes(trace)) if trace else found

    def _read(self, *commands: tuple[str, ...]) -> list[Any]:
        """Run commands that read, in one round trip."""
        with self._client.pipeline(transaction=False) as opened:
            pipeline: Any = opened  # its execute_command has no types
            for command in commands:
                pipeline.execute_command(*command)
            found: list[Any] = asking(pipeline.execute)
        return found

    def _living(self, supervisors: Iterable[str]) -> set[str]:
        return living_supervisors(self._client, self._keys, supervisors)


def _trace_changes(rows: dict[bytes, bytes]) -> dict[str, dict[str, list[str]]]:
    found: dict[str, dict[str, list[str]]] = {}
    for field, value in rows.items():
        model, name = field.decode().split("/")
        found.setdefault(model, {})[name] = json.loads(value)
    return found


def _numbers(log: dict[bytes, bytes]) -> dict[str, int]:
    return {name.decode(): int(value) for name, value in log.items()}


def asset_digest(content: bytes) -> str:
    """Return the digest that an asset is found by."""
    return blake2b(content, digest_size=16).hexdigest()
