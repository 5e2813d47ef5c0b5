"""Reads and writes the state of `desired_state.py`; every method raises RedisUnavailable."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import redis
from redis.exceptions import WatchError

from shared.errors import RedisUnavailable
from shared.names import MODEL_NAME
from shared.registry.desired_state import Desired, Serving, SupervisorReport, sent_elsewhere
from shared.registry.keys import RegistryKeys, living_supervisors, read_changes, ring
from shared.request_queue.keys import RETIRED_COUNTS_SECONDS, QueueKeys
from shared.request_queue.model_statistics import Outcomes, read_outcomes
from shared.wire.client import asking, milliseconds
from shared.wire.scripts import script_text

log = logging.getLogger(__name__)

CLOSED_MS = 3_600_000
MAX_CONFLICTS = 20
Update = Callable[[Desired, Serving | None], Desired | None]
Closing = Literal["closed", "busy", "served"]


@dataclass(frozen=True)
class ControlState:
    """All that is desired, reported and served at one moment; only living supervisors report.

    `changes` is what `DesiredStore.changes` returned then.
    """

    desired: dict[str, Desired] = field(default_factory=dict)
    reports: dict[str, SupervisorReport] = field(default_factory=dict)
    served: dict[str, Serving] = field(default_factory=dict)
    changes: int = 0


class Content(NamedTuple):
    """A version's content: the digest of its files and its configuration."""

    name: str
    version: str
    fingerprint: str


class DesiredStore:
    """Reads and writes the desired, the reported and the served versions."""

    def __init__(self, client: redis.Redis, prefix: str) -> None:
        """Use `client`, naming keys under `prefix`."""
        self._client = client
        self._prefix = prefix
        self._keys = RegistryKeys(prefix)

    def changes(self) -> int:
        """Return a number that is another one after every change."""
        return read_changes(self._client, self._keys)

    def read(self) -> ControlState:
        """Return everything, in two round trips."""
        keys = self._keys

        def fetch() -> list[Any]:
            with self._client.pipeline(transaction=True) as opened:
                pipeline: Any = opened
                pipeline.hgetall(keys.desired).hgetall(keys.reports).hgetall(keys.served)
                found: list[Any] = pipeline.get(keys.changes).execute()
                return found

        desired, reports, served, changes = asking(fetch)
        living = living_supervisors(self._client, keys, (name.decode() for name in reports))
        return ControlState(
            _wishes(desired),
            {
                name.decode(): SupervisorReport.model_validate_json(row)
                for name, row in reports.items()
                if name.decode() in living
            },
            {name.decode(): Serving.model_validate_json(row) for name, row in served.items()},
            int(changes or 0),
        )

    def change(self, name: str, update: Update) -> Desired:
        """Replace one model's desired state; raises what `update` raises.

        `update` is given what is desired and served now, and returns None for no change. It may be
        called again when somebody else changed it meanwhile.
        """
        for _ in range(MAX_CONFLICTS):
            try:
                changed: Desired = asking(lambda: self._change(name, update))
            except RedisUnavailable as error:
                if not isinstance(error.__cause__, WatchError):
                    raise
            else:
                return changed
        raise RedisUnavailable(f"too many changes of '{name}' at once: ask again")

    def _change(self, name: str, update: Update) -> Desired:
        keys = self._keys
        with self._client.pipeline() as opened:
            pipeline: Any = opened
            pipeline.watch(keys.desired, keys.served)
            row, served = pipeline.hget(keys.desired, name), pipeline.hget(keys.served, name)
            now = _wishes({name.encode(): row} if row else {}).get(name, Desired())
            serving = Serving.model_validate_json(served) if served else None
            # Never one that was there before, even if the model was forgotten meanwhile.
            generation = max(now.generation, int(pipeline.get(keys.changes) or 0)) + 1
            changed = update(now, serving)
            if changed is None:
                return now
            wanted = changed.model_copy(update={"generation": generation})
            pipeline.multi()
            pipeline.hset(keys.desired, name, wanted.model_dump_json())
            pipeline.incr(keys.changes)
            pipeline.execute()
        ring(self._client, self._keys)
        return wanted

    def forget(self, name: str) -> None:
        """Remove a model's desired state."""
        self._write("hdel", self._keys.desired, name)

    def restore(self, known: ControlState) -> None:
        """Write the last known state into a Redis that came back empty; newer entries stay.

        Another supervisor may have written what it knew, which was older: what is desired is known
        by its generation, and where requests go follows from that.
        """
        for name, desired in known.desired.items():
            asking(partial(self._restore_desired, name, desired))
        for name, serving in known.served.items():
            self._write("hsetnx", self._keys.served, name, serving.model_dump_json())

    def _restore_desired(self, name: str, desired: Desired) -> None:
        keys = self._keys

        def write(pipeline: Any) -> None:
            row = pipeline.hget(keys.desired, name)
            pipeline.multi()
            there = _wishes({name.encode(): row} if row else {}).get(name)
            if there is None or there.generation < desired.generation:
                pipeline.hset(keys.desired, name, desired.model_dump_json())
                pipeline.incr(keys.changes)

        self._client.transaction(write, keys.desired)
        ring(self._client, self._keys)

    def put_report(self, supervisor: str, report: SupervisorReport) -> None:
        """Write a supervisor's report."""
        self._write("hset", self._keys.reports, supervisor, report.model_dump_json())

    def drop_report(self, supervisor: str) -> None:
        """Forget a supervisor that is gone, and the devices that it saw."""
        asking(lambda: self._client.hdel(self._keys.devices, supervisor))
        self._write("hdel", self._keys.reports, supervisor)

    def serve(
        self, name: str, serving: Serving | None, contents: Iterable[str], changes: int
    ) -> bool:
        """Send a model's requests elsewhere, or nowhere; from then on its queues refuse others.

        `contents` are the `ModelSpec.key`s that it could be asked by until now. An API process that
        does not know of the change yet, however long it stood still, is refused by Redis. So is a
        supervisor: nothing is written, and False returned, unless the counter still stands at
        `changes`, as when it read what it decided by. Here it is counted on by one.
        """
        keys = self._keys

        def run() -> bool:
            with self._client.pipeline() as opened:
                pipeline: Any = opened
                pipeline.watch(keys.changes)
                if int(pipeline.get(keys.changes) or 0) != changes:
                    return False
                pipeline.multi()
                if serving is None:
                    pipeline.hdel(keys.served, name)
                else:
                    pipeline.hset(keys.served, name, serving.model_dump_json())
                for key in {*contents, *(serving.versions.values() if serving else ())}:
                    gate, who = QueueKeys(self._prefix, key).elsewhere, sent_elsewhere(key, serving)
                    pipeline.set(gate, who) if who else pipeline.delete(gate)
                pipeline.incr(keys.changes)
                try:
                    pipeline.execute()
                except WatchError:
                    return False
            return True

        is_written = bool(asking(run))
        if is_written:
            ring(self._client, self._keys)
        return is_written

    def _write(self, command: str, *arguments: str) -> None:
        def run() -> None:
            with self._client.pipeline() as opened:
                pipeline: Any = opened
                getattr(pipeline, command)(*arguments)
                pipeline.incr(self._keys.changes)
                pipeline.execute()

        asking(run)
        ring(self._client, self._keys)

    def revision(self, content: Content, supervisor: str, *, replaces: bool) -> int:
        """Return the number of a version's content, the same on every supervisor.

        Content that was never seen gets a number of its own when it `replaces` what runs, else the
        last one's, whose waiting requests it answers.
        """
        client: Any = self._client
        arguments = (
            f"{content.name}/{content.version}", content.fingerprint, int(replaces), supervisor,
            self._keys.supervisors,
        )  # fmt: skip
        script = script_text("revision")
        return int(asking(lambda: client.eval(script, 1, self._keys.revisions, *arguments)))

    def restore_revision(self, content: Content, number: int, supervisor: str) -> None:
        """Write the running content's number into a Redis that came back empty."""
        name = f"{content.name}/{content.version}"
        self._write("hsetnx", self._keys.revisions, f"{name}/{content.fingerprint}", str(number))
        held = f"{content.fingerprint} {supervisor}"
        self._write("hsetnx", self._keys.revisions, f"{name}@{number}", held)
        last = int(asking(lambda: self._client.hget(self._keys.revisions, name)) or 0)
        self._write("hset", self._keys.revisions, name, str(max(last, number)))

    def outcomes(self, model_keys: Sequence[str]) -> list[Outcomes]:
        """Return how many requests each content answered and failed so far."""
        return read_outcomes(self._client, self._prefix, model_keys) if model_keys else []

    def open(self, model_key: str) -> None:
        """Open a version's queue for requests, before its instances start."""
        keys = QueueKeys(self._prefix, model_key)

        def run() -> None:
            with self._client.pipeline(transaction=False) as opened:
                pipeline: Any = opened
                pipeline.delete(keys.closed)
                for kept in (keys.elsewhere, keys.stats, keys.counts, keys.dead, keys.turns):
                    pipeline.persist(kept)
                pipeline.execute()

        asking(run)

    def closed_keys(self, model_keys: Iterable[str]) -> list[str]:
        """Return the keys of which one exists when one of these versions' queues is closed."""
        return [QueueKeys(self._prefix, key).closed for key in model_keys]

    def close(self, model_key: str, levels: int, instances: Iterable[str]) -> Closing:
        """Close a version's queue to new requests, unless it has work left or requests go to it."""
        keys = QueueKeys(self._prefix, model_key, levels).with_bulk
        inflight = [key for instance in instances for key in keys.held_by(instance)]
        kept = [keys.stats, keys.counts, keys.dead, keys.turns]
        names = [self._keys.served, keys.closed, keys.elsewhere, *kept, *keys.lists, *inflight]
        client: Any = self._client
        name = model_key.partition("/")[0]
        arguments = (name, model_key, CLOSED_MS, milliseconds(RETIRED_COUNTS_SECONDS))
        script = script_text("close")
        reply: bytes = asking(lambda: client.eval(script, len(names), *names, *arguments))
        return cast("Closing", reply.decode())


def _wishes(rows: Mapping[bytes, bytes]) -> dict[str, Desired]:
    """Return what is desired of each model; a row that nobody of ours wrote is no wish."""
    found = {}
    for key, row in rows.items():
        name = key.decode(errors="replace")
        try:
            wish = Desired.model_validate_json(row)
        except ValueError as error:
            log.warning("what is desired of %r is not followed: %s", name[:128], error)
            continue
        if MODEL_NAME.fullmatch(name):
            found[name] = wish
    return found
