"""Puts back the work of instances that died, our own and those of machines that are gone.

Apart from the supervisor, which knows processes: this knows the queues that they left.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable

from redis import Redis

from shared.bodies.worker_bodies import WorkerBodies
from shared.model_spec import ModelSpec
from shared.registry.registry import Registry
from shared.registry.snapshot import InstanceRecord
from shared.request_queue.keys import QueueKeys
from shared.request_queue.limits import NO_LOSS, Loss
from shared.request_queue.recovery import bring_in, recover
from shared.settings import Settings
from shared.wire.wire import open_wire

log = logging.getLogger(__name__)


class Recovery:
    """Every method that asks Redis raises RedisError or RedisUnavailable."""

    def __init__(
        self,
        client: Redis,
        registry: Registry,
        settings: Settings,
        bodies: WorkerBodies | None = None,
    ) -> None:
        """Open nothing yet; what instances held may have large tensors in `bodies`."""
        self._bodies = bodies
        self._wire = open_wire(client)
        self._registry = registry
        self._settings = settings
        self._noted: dict[str, tuple[str, Loss]] = {}
        self._counts: Counter[str] = Counter()

    def note(self, instance: str, model_key: str, loss: Loss = NO_LOSS) -> None:
        """Remember that an instance of ours ended, until Redis was told."""
        self._noted.setdefault(instance, (model_key, loss))

    def recover_noted(self) -> None:
        """Put back the work of the instances that were noted."""
        for instance, (model_key, loss) in list(self._noted.items()):
            self.recover(instance, model_key, crashed=True, loss=loss)
            del self._noted[instance]

    def recover(
        self, instance: str, model_key: str, *, crashed: bool, loss: Loss = NO_LOSS
    ) -> None:
        """Put back an instance's work, and forget it; a crash counts as an attempt."""
        keys = QueueKeys(self._settings.key_prefix, model_key)
        if crashed and self._bodies is not None:
            bring_in(self._wire, keys, instance, self._bodies)
        back, given_up = recover(
            self._wire, keys, instance, crashed=crashed,
            result_ttl_seconds=self._settings.result_ttl_seconds, loss=loss,
        )  # fmt: skip
        self._registry.drop_instance(instance)
        if back or given_up:
            log.warning("%s died: %d requests put back, %d given up", instance, back, given_up)

    def take_over(self, records: list[InstanceRecord], alive: set[str]) -> None:
        """Put back the work of instances whose supervisors are not `alive`."""
        lost = [record for record in records if record.supervisor not in alive]
        self._counts = Counter(record.model_key for record in records)
        for key in {record.model_key for record in lost}:
            self._end_waits(key)
        for record in lost:
            log.warning("supervisor %s is gone, taking over %s", record.supervisor, record.id)
            self.recover(record.id, record.model_key, crashed=True)

    def _end_waits(self, model_key: str) -> None:
        """Wake the instances of a model, those too whose machine is gone.

        Their connections may still wait at Redis, where each would take requests after its work
        was put back. Whoever waits is woken by one write, and has claimed when it is answered.
        """
        bell = QueueKeys(self._settings.key_prefix, model_key).bell
        self._wire.send(("RPUSH", bell, *["1"] * max(1, self._counts[model_key])))
        self._wire.reply()
        self._wire.send(("LTRIM", bell, 0, 0))
        self._wire.reply()

    def ring_for_what_waits(self, specs: Iterable[ModelSpec]) -> None:
        """Wake the instances of those versions that have requests and a silent bell.

        Who took the token may have ended, or have been unable to read what it was rung for; an
        instance that has been idle for long would not look by itself. One round trip for all.
        """
        queues = {
            spec.key: QueueKeys.of(spec, self._settings.key_prefix).with_bulk for spec in specs
        }
        asked = [name for keys in queues.values() for name in (keys.bell, *keys.lists)]
        if not asked:
            return
        self._wire.send(*(("EXISTS", name) for name in asked))
        there = {name for name in asked if self._wire.reply()}
        for key, keys in queues.items():
            if keys.bell not in there and not there.isdisjoint(keys.lists):
                self._end_waits(key)
