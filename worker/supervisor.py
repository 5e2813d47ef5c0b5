"""Starts one process per model instance, restarts what dies, puts dead instances' work back.

The supervisor is the failure detector: the operating system tells it of a child's death at once.
It never loads a model and never touches a GPU; instances are forked from a forkserver that has
torch imported, so a replacement is there in well under a second.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from multiprocessing import connection, get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path
from secrets import token_hex

from redis.exceptions import RedisError

from shared.errors import BadModel, RedisUnavailable
from shared.redis_connection import connect, open_wire
from shared.registry import Registry
from shared.request_queue import QueueKeys, recover
from shared.settings import Settings
from worker.assignment import assign, gpu_count
from worker.model_repository import ServedModel, model_names, read_model
from worker.slot import Slot

log = logging.getLogger(__name__)

MISSED_HEARTBEATS = 3
TICK_SECONDS = 0.5


class Supervisor:
    """All instances of one machine."""

    def __init__(self, settings: Settings) -> None:
        """Open nothing yet."""
        self.id = f"{socket.gethostname()}-{os.getpid()}-{token_hex(3)}"
        self._settings = settings
        self._client = connect(settings.redis_url)
        self._registry = Registry(self._client, settings.key_prefix)
        self._wire = open_wire(self._client)
        self._context: ForkServerContext = get_context("forkserver")
        self._context.set_forkserver_preload(["worker.forkserver_preload"])
        self._served: list[ServedModel] = []
        self._slots: list[Slot] = []
        self._to_recover: dict[str, str] = {}
        self._stopping = False
        self._next_beat = 0.0

    def run(self) -> None:
        """Serve the repository until SIGTERM or SIGINT, then drain."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._wait_for_redis()
        self._start_models()
        while not self._stopping:
            self._tick()
            waiting = [slot.process.sentinel for slot in self._slots if slot.process]
            waiting += [slot.reports for slot in self._slots if slot.reports]
            connection.wait(waiting, timeout=self._pause())
        self._drain()

    def _on_signal(self, *_: object) -> None:
        self._stopping = True

    def _wait_for_redis(self) -> None:
        while not self._stopping:
            try:
                self._registry.ping()
                return
            except RedisUnavailable as error:
                log.warning("waiting for Redis: %s", error)
                time.sleep(TICK_SECONDS)

    def _start_models(self) -> None:
        """Read every model; one that cannot be served is reported and the others serve."""
        self._registry.clear_failures()
        repository = Path(self._settings.models)
        for name in model_names(repository):
            try:
                self._served.append(read_model(repository, name))
            except BadModel as error:
                self._fail(name, error)
        gpus = gpu_count(self._context)
        placed, failures = assign(self._served, gpus, self._settings.cpu_threads)
        for name, failure in failures.items():
            self._fail(name, failure)
        self._slots = [
            Slot(model, placement, index, self.id, self._settings, self._context)
            for index, (model, placement) in enumerate(placed)
        ]
        for key in self._registry.model_keys() - {slot.model.spec.key for slot in self._slots}:
            self._forget(key)

    def _fail(self, name: str, error: BadModel) -> None:
        log.error("%s; the other models serve", error)
        self._registry.report_failure(name, str(error))

    def _forget(self, model_key: str) -> None:
        """Take a model of an earlier run out of the registry, unless another machine serves it."""
        records, alive = self._registry.instances()
        if not any(r.model_key == model_key and r.supervisor in alive for r in records):
            self._registry.remove_model(model_key)

    def _tick(self) -> None:
        """Look after every slot, and Redis permitting, put back work and beat."""
        for slot in self._slots:
            dead = slot.reap(self._settings.max_batch_seconds)
            if dead:
                self._to_recover[dead] = slot.model.spec.key
        try:
            self._recover_own()
            # subtle: an instance may only be recorded while its supervisor is known to live.
            if time.monotonic() >= self._next_beat:
                self._beat()
            for slot in self._slots:
                self._look_after(slot)
        except (RedisUnavailable, RedisError) as error:
            log.warning("Redis fails, the supervisor tries again: %s", error)
            time.sleep(0.1)

    def _look_after(self, slot: Slot) -> None:
        changed = slot.read_reports()
        if slot.process is None and time.monotonic() >= slot.start_at:
            slot.start()
            changed = True
        if changed or not slot.recorded:
            slot.recorded = False
            self._registry.put_instance(slot.record())
            slot.recorded = True

    def _recover_own(self) -> None:
        for instance, model_key in list(self._to_recover.items()):
            self._recover(instance, model_key, crashed=True)
            del self._to_recover[instance]

    def _recover(self, instance: str, model_key: str, *, crashed: bool) -> None:
        keys = QueueKeys(self._settings.key_prefix, model_key)
        back, given_up = recover(
            self._wire, keys, instance, crashed=crashed,
            result_ttl_seconds=self._settings.result_ttl_seconds,
        )  # fmt: skip
        self._registry.drop_instance(instance)
        if back or given_up:
            log.warning("%s died: %d requests put back, %d given up", instance, back, given_up)

    def _beat(self) -> None:
        """Say that we live, keep the registry filled, take over from supervisors that are gone."""
        heartbeat = self._settings.heartbeat_seconds
        self._registry.beat(self.id, MISSED_HEARTBEATS * heartbeat)
        for model in {slot.model.spec.key: slot.model for slot in self._slots}.values():
            self._registry.add_model(model.spec)
            if model.asset is not None:
                self._registry.keep_asset(model.asset)
        for slot in self._slots:
            if slot.process is not None:
                self._registry.put_instance(slot.record())
        records, alive = self._registry.instances()
        for record in records:
            if record.supervisor not in alive:
                log.warning("supervisor %s is gone, taking over %s", record.supervisor, record.id)
                self._recover(record.id, record.model_key, crashed=True)
        self._next_beat = time.monotonic() + heartbeat

    def _pause(self) -> float:
        """Return how long nothing is due: until the next beat or restart, at most a tick."""
        due = [self._next_beat] + [slot.start_at for slot in self._slots if slot.process is None]
        return min(TICK_SECONDS, max(0.01, min(due) - time.monotonic()))

    def _drain(self) -> None:
        """Let every instance finish its batch, then leave the registry."""
        log.info("stopping %d instances", len(self._slots))
        for slot in self._slots:
            slot.terminate()
        deadline = time.monotonic() + self._settings.max_batch_seconds
        for slot in self._slots:
            slot.join(max(0.0, deadline - time.monotonic()))
        try:
            for slot in self._slots:
                self._recover(slot.instance_id, slot.model.spec.key, crashed=False)
            self._recover_own()
            self._registry.stop_beating(self.id)
        except (RedisUnavailable, RedisError) as error:
            log.warning("Redis fails at the end, another supervisor will clean up: %s", error)
        log.info("stopped")
