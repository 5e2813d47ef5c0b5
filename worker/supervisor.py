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
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from secrets import token_hex

from redis.exceptions import RedisError

from shared.errors import BadModel, RedisUnavailable
from shared.log_settings import LogLevel
from shared.queue_keys import QueueKeys
from shared.redis_connection import connect, open_wire
from shared.registry import Registry
from shared.request_queue import recover
from shared.settings import Settings
from worker.assignment import assign, gpu_count
from worker.model_repository import ServedModel, model_names, read_model
from worker.slot import Slot

log = logging.getLogger(__name__)

LOOKS_PER_HEARTBEAT = 4
BEAT_TERM = 3 - 1 / LOOKS_PER_HEARTBEAT
"""How many heartbeats a sign of life lasts: a loss is seen, and taken over, within three."""
TICK_SECONDS = 0.5
DRAIN_TICK_SECONDS = 0.2


class Supervisor:
    """All instances of one machine."""

    def __init__(self, settings: Settings) -> None:
        """Open nothing yet."""
        self.id = f"{socket.gethostname()}-{os.getpid()}-{token_hex(3)}"
        self._settings = settings
        self._client = connect(settings.redis_url)
        self._registry = Registry(self._client, settings.key_prefix)
        self._wire = open_wire(self._client)
        self._log_level = LogLevel(settings.log_level)
        self._context: ForkServerContext = get_context("forkserver")
        self._context.set_forkserver_preload(["worker.forkserver_preload"])
        self._failures: dict[str, str] = {}
        self._slots: list[Slot] = []
        self._to_recover: dict[str, str] = {}
        self._stopping = False
        self._next_beat = 0.0
        self._next_look = 0.0

    def run(self) -> None:
        """Serve the repository until SIGTERM or SIGINT, then drain."""
        # subtle: Python goes on waiting after a signal; what it writes here ends the wait.
        signalled, wakeup = connection.Pipe(duplex=False)
        os.set_blocking(wakeup.fileno(), False)
        signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._read_models()
        self._clean_registry()
        while not self._stopping:
            self._tick()
            waiting: list[int | Connection] = [signalled]
            waiting += [slot.process.sentinel for slot in self._slots if slot.process]
            waiting += [slot.reports for slot in self._slots if slot.reports]
            connection.wait(waiting, timeout=self._pause())
        self._drain()

    def _on_signal(self, *_: object) -> None:
        self._stopping = True

    def _read_models(self) -> None:
        """Read every model; one that cannot be served is reported and the others serve."""
        repository = Path(self._settings.models)
        served: list[ServedModel] = []
        for name in model_names(repository):
            try:
                served.append(read_model(repository, name))
            except BadModel as error:
                self._fail(name, error)
        placed, failures = assign(served, gpu_count(self._context), self._settings.cpu_threads)
        for name, failure in failures.items():
            self._fail(name, failure)
        self._slots = [
            Slot(model, placement, index, self.id, self._settings, self._context)
            for index, (model, placement) in enumerate(placed)
        ]

    def _fail(self, name: str, error: BadModel) -> None:
        log.error("%s; the other models serve", error)
        self._failures[name] = str(error)

    def _clean_registry(self) -> None:
        """Forget what an earlier run left in the registry, once Redis is there."""
        ours = {slot.model.spec.key for slot in self._slots}
        while not self._stopping:
            try:
                self._registry.clear_failures()
                for key in self._registry.model_keys() - ours:
                    self._forget(key)
                return
            except RedisUnavailable as error:
                log.warning("waiting for Redis: %s", error)
                time.sleep(TICK_SECONDS)

    def _forget(self, model_key: str) -> None:
        """Take a model of an earlier run out of the registry, unless another machine serves it."""
        records, alive = self._registry.instances()
        if not any(r.model_key == model_key and r.supervisor in alive for r in records):
            self._registry.remove_model(model_key)

    def _tick(self) -> None:
        """Look after every slot, and Redis permitting, put back work, beat and take over."""
        for slot in self._slots:
            dead = slot.reap(self._settings.max_batch_seconds)
            if dead:
                self._to_recover[dead] = slot.model.spec.key
        try:
            self._recover_own()
            # subtle: an instance may only be recorded while its supervisor is known to live.
            if time.monotonic() >= self._next_beat:
                self._beat()
            if time.monotonic() >= self._next_look:
                self._take_over()
            for slot in self._slots:
                self._look_after(slot)
        except (RedisUnavailable, RedisError) as error:
            log.warning("Redis fails, the supervisor tries again: %s", error)
            self._next_beat = 0.0  # it may come back empty
            # subtle: after an outage all signs of life have run out; who lives beats again first.
            self._next_look = time.monotonic() + BEAT_TERM * self._settings.heartbeat_seconds
            time.sleep(0.1)

    def _look_after(self, slot: Slot) -> None:
        changed = slot.read_reports()
        if slot.process is None and time.monotonic() >= slot.start_at:
            self._to_recover[slot.instance_id] = slot.model.spec.key  # its last record goes too
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
        """Say that we live, and keep the registry filled, which Redis may have lost."""
        heartbeat = self._settings.heartbeat_seconds
        self._registry.beat(self.id, BEAT_TERM * heartbeat)
        for name, reason in self._failures.items():
            self._registry.report_failure(name, reason)
        for model in {slot.model.spec.key: slot.model for slot in self._slots}.values():
            self._registry.add_model(model.spec)
            if model.asset is not None:
                self._registry.keep_asset(model.asset)
        for slot in self._slots:
            if slot.process is not None:
                slot.measure()
                self._registry.put_instance(slot.record())
        self._next_beat = time.monotonic() + heartbeat

    def _take_over(self) -> None:
        """Put back what the instances of supervisors that are gone held; log as was set."""
        records, alive, log_changes = self._registry.instances_and_log()
        self._log_level.follow(log_changes)
        for slot in self._slots:
            slot.log_at(self._log_level.number)
        if self.id not in alive:
            self._beat()  # Redis came back empty, so soon that nobody saw it go
        for record in records:
            if record.supervisor not in alive | {self.id}:
                log.warning("supervisor %s is gone, taking over %s", record.supervisor, record.id)
                self._recover(record.id, record.model_key, crashed=True)
        self._next_look = time.monotonic() + self._settings.heartbeat_seconds / LOOKS_PER_HEARTBEAT

    def _pause(self) -> float:
        """Return how long nothing is due: no beat, no look, no restart; at most a tick."""
        due = [self._next_beat, self._next_look]
        due += [slot.start_at for slot in self._slots if slot.process is None]
        return min(TICK_SECONDS, max(0.01, min(due) - time.monotonic()))

    def _drain(self) -> None:
        """Let every instance finish its batch, then leave the registry.

        One that is just being forked does not hear SIGTERM yet, so it is sent again; and we still
        beat, or others would take over what is being finished here.
        """
        log.info("stopping %d instances", len(self._slots))
        deadline = time.monotonic() + self._settings.max_batch_seconds
        overdue = False
        while running := [slot for slot in self._slots if slot.process]:
            overdue = time.monotonic() >= deadline
            for slot in running:
                slot.stop(kill=overdue)
            self._beat_while_draining()
            sentinels = [slot.process.sentinel for slot in running if slot.process]
            connection.wait(sentinels, timeout=DRAIN_TICK_SECONDS if sentinels else 0)
        try:
            self._recover_own()
            for slot in self._slots:
                self._recover(slot.instance_id, slot.model.spec.key, crashed=overdue)
            self._registry.stop_beating(self.id)
        except (RedisUnavailable, RedisError) as error:
            log.warning("Redis fails at the end, another supervisor will clean up: %s", error)
        log.info("stopped")

    def _beat_while_draining(self) -> None:
        if time.monotonic() < self._next_beat:
            return
        try:
            self._registry.beat(self.id, BEAT_TERM * self._settings.heartbeat_seconds)
        except RedisUnavailable as error:
            log.warning("no heartbeat while stopping, Redis fails: %s", error)
        self._next_beat = time.monotonic() + self._settings.heartbeat_seconds
