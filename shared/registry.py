"""What is served, by whom: written by supervisors, read by every API process.

key                           type    holds                                          expires
ferry:models                  hash    name/version -> ModelSpec as JSON              no
ferry:instances               hash    instance id -> InstanceRecord as JSON          no (see 1)
ferry:supervisors:<id>        string  a supervisor's sign of life                    3 heartbeats
ferry:assets:<digest>         string  a file the API needs (a tokenizer)             no
ferry:failures                hash    name -> why the model could not be loaded      no
ferry:log                     hash    log setting -> its number, of those that were  no
                                      set for all processes (log_settings.py)

1: removed when the instance ends; when its supervisor's key is gone, by whoever recovers it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal, cast

import redis
from pydantic import BaseModel, ConfigDict

from shared.model_spec import ModelSpec
from shared.redis_connection import asking

State = Literal["starting", "ready", "failed"]


class InstanceRecord(BaseModel):
    """One worker process: which model it runs where, whether it takes requests, what it has done.

    What it has done is as of its supervisor's last heartbeat. `row_limit` is how many rows at once
    its memory holds when that is less than the model's batch, 0 when nothing limits it.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    supervisor: str
    model: str
    version: str
    state: State
    device: str = "cpu"
    host: str = ""
    pid: int = 0
    reason: str = ""
    answered_count: int = 0
    requests_per_second: float = 0.0
    last_batch_rows: int = 0
    last_batch_seconds: float = 0.0
    row_limit: int = 0

    @property
    def model_key(self) -> str:
        """Return `name/version`."""
        return f"{self.model}/{self.version}"


@dataclass(frozen=True)
class Snapshot:
    """The registry at one moment: models by name and version, and which of them are served.

    `failures` says of models that nobody serves why they could not be loaded, `drain_rates` how
    many requests per second the ready instances of each `name/version` answered of late, `loading`
    of which `name/version` an instance is starting, and `log` what was set of the log settings.
    """

    models: dict[str, dict[str, ModelSpec]] = field(default_factory=dict)
    ready: frozenset[str] = frozenset()
    failures: dict[str, str] = field(default_factory=dict)
    drain_rates: dict[str, float] = field(default_factory=dict)
    loading: frozenset[str] = frozenset()
    log: dict[str, int] = field(default_factory=dict)

    def drain_rate(self, model_key: str) -> float:
        """Return the requests per second that a model version's instances answered of late.

        What they could answer when they are busy; less, down to 0, when little was asked of them.
        """
        return self.drain_rates.get(model_key, 0.0)

    def all_ready(self) -> bool:
        """Tell whether every registered model has a ready instance and none failed to load."""
        keys = {spec.key for versions in self.models.values() for spec in versions.values()}
        return bool(keys) and keys <= self.ready and not self.failures


class Registry:
    """The registry's keys; every method raises RedisUnavailable when Redis fails."""

    def __init__(self, client: redis.Redis, prefix: str) -> None:
        """Use `client`, naming keys under `prefix`."""
        self._client = client
        self._models = f"{prefix}:models"
        self._instances = f"{prefix}:instances"
        self._supervisors = f"{prefix}:supervisors:"
        self._assets = f"{prefix}:assets:"
        self._failures = f"{prefix}:failures"
        self._log = f"{prefix}:log"

    def ping(self) -> None:
        """Raise RedisUnavailable unless Redis answers."""
        asking(self._client.ping)

    def add_model(self, spec: ModelSpec) -> None:
        """Register one version; `ready` says separately whether anybody serves it."""
        asking(lambda: self._client.hset(self._models, spec.key, spec.model_dump_json()))
        asking(lambda: self._client.hdel(self._failures, spec.name))

    def remove_model(self, model_key: str) -> None:
        """Forget one version."""
        asking(lambda: self._client.hdel(self._models, model_key))

    def model_keys(self) -> set[str]:
        """Return `name/version` of every registered model."""
        return {key.decode() for key in asking(lambda: self._client.hkeys(self._models))}

    def report_failure(self, name: str, reason: str) -> None:
        """Say why a model directory cannot be served."""
        asking(lambda: self._client.hset(self._failures, name, reason))

    def clear_failures(self) -> None:
        """Forget earlier failures, at a supervisor's start."""
        asking(lambda: self._client.delete(self._failures))

    def keep_asset(self, content: bytes) -> None:
        """Store a file's content unless it is there already."""
        key = self._assets + asset_digest(content)
        if not asking(lambda: self._client.exists(key)):
            asking(lambda: self._client.set(key, content))

    def asset(self, digest: str) -> bytes | None:
        """Return the content stored under `digest`, None when it is not there."""
        return cast("bytes | None", asking(lambda: self._client.get(self._assets + digest)))

    def put_instance(self, record: InstanceRecord) -> None:
        """Register an instance or its new state."""
        asking(lambda: self._client.hset(self._instances, record.id, record.model_dump_json()))

    def drop_instance(self, instance_id: str) -> None:
        """Forget an instance that ended and whose work was put back."""
        asking(lambda: self._client.hdel(self._instances, instance_id))

    def beat(self, supervisor_id: str, ttl_seconds: float) -> None:
        """Say that a supervisor lives, for `ttl_seconds`."""
        key, ttl_ms = self._supervisors + supervisor_id, int(1000 * ttl_seconds)
        asking(lambda: self._client.set(key, "1", px=ttl_ms))

    def stop_beating(self, supervisor_id: str) -> None:
        """Say that a supervisor is gone, at its orderly end."""
        asking(lambda: self._client.delete(self._supervisors + supervisor_id))

    def log_changes(self) -> dict[str, int]:
        """Return the log settings that were set."""
        return _numbers(asking(lambda: self._client.hgetall(self._log)))

    def change_log(self, changes: dict[str, int]) -> None:
        """Set some log settings and leave the others."""
        asking(lambda: self._client.hset(self._log, mapping=cast("dict[Any, Any]", changes)))

    def instances(self) -> tuple[list[InstanceRecord], set[str]]:
        """Return all instances and the ids of the supervisors that live."""
        return self.instances_and_log()[:2]

    def instances_and_log(self) -> tuple[list[InstanceRecord], set[str], dict[str, int]]:
        """Return the same and the log settings that were set, which cost no round trip more."""
        rows, log = self._read(("HVALS", self._instances), ("HGETALL", self._log))
        records = [InstanceRecord.model_validate_json(row) for row in rows]
        return records, self._alive(records), _numbers(log)

    def snapshot(self) -> Snapshot:
        """Return all models and which of them have a ready instance of a living supervisor."""
        specs, rows, failures, log = self._read(
            ("HVALS", self._models), ("HVALS", self._instances),
            ("HGETALL", self._failures), ("HGETALL", self._log),
        )  # fmt: skip
        models: dict[str, dict[str, ModelSpec]] = {}
        for row in specs:
            spec = ModelSpec.model_validate_json(row)
            models.setdefault(spec.name, {})[spec.version] = spec
        records = [InstanceRecord.model_validate_json(row) for row in rows]
        alive = self._alive(records)
        living = [record for record in records if record.supervisor in alive]
        drain_rates: dict[str, float] = {}
        for record in living:
            if record.state == "ready":
                rate = drain_rates.get(record.model_key, 0.0) + record.requests_per_second
                drain_rates[record.model_key] = rate
        reasons = {name.decode(): reason.decode() for name, reason in failures.items()}
        reasons |= {record.model: record.reason for record in living if record.reason}
        for key in drain_rates:
            reasons.pop(key.partition("/")[0], None)
        loading = frozenset(record.model_key for record in living if record.state == "starting")
        return Snapshot(
            models, frozenset(drain_rates), reasons, drain_rates, loading, _numbers(log)
        )

    def _read(self, *commands: tuple[str, str]) -> list[Any]:
        """Run commands that read, in one round trip."""
        with self._client.pipeline(transaction=False) as opened:
            pipeline: Any = opened  # its execute_command has no types
            for command in commands:
                pipeline.execute_command(*command)
            found: list[Any] = asking(pipeline.execute)
        return found

    def _alive(self, records: list[InstanceRecord]) -> set[str]:
        """Return which of the instances' supervisors live."""
        supervisors = sorted({record.supervisor for record in records})
        keys = [self._supervisors + supervisor for supervisor in supervisors]
        beats = asking(lambda: self._client.mget(keys)) if keys else []
        return {name for name, beat in zip(supervisors, beats, strict=True) if beat is not None}


def _numbers(log: dict[bytes, bytes]) -> dict[str, int]:
    return {name.decode(): int(value) for name, value in log.items()}


def asset_digest(content: bytes) -> str:
    """Return what an asset is found by."""
    return blake2b(content, digest_size=16).hexdigest()
