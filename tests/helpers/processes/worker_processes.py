"""What tests ask of running workers: their processes, their instances, their model's answers."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from redis import Redis
from waiting import wait_until

from shared.datatypes import Array
from shared.messages import InferRequest, InferResult, Tensor
from shared.registry.registry import Registry
from shared.registry.snapshot import InstanceRecord
from shared.request_queue.api_end import PendingRequest, RequestQueue
from shared.request_queue.keys import QueueKeys
from shared.request_queue.limits import Limits
from shared.settings import Settings
from shared.wire.client import connect


class Served:
    """One model served under `settings`, seen from outside."""

    def __init__(self, settings: Settings, redis: Redis, model: str) -> None:
        self.redis = redis
        self.model = model
        self.keys = QueueKeys(settings.key_prefix, f"{model}/1")
        self.registry = Registry(redis, settings.key_prefix)
        self.queue = RequestQueue(redis, self.keys, Limits(100))

    def push(self, value: float, shape: tuple[int, ...] = (1, 2)) -> PendingRequest:
        """Ask for an x full of `value`s: rows of two, or two numbers without a batch dimension."""
        x = Tensor.of("x", np.full(shape, value, np.float32))
        rows = 1 if len(shape) == 1 else shape[0]
        return self.queue.push(InferRequest(self.queue.new_id(), rows, (x,), (), 60.0))

    def records(self) -> list[InstanceRecord]:
        return [record for record in self.registry.instances()[0] if record.model == self.model]

    def ready(self) -> list[InstanceRecord]:
        return [record for record in self.records() if record.state == "ready"]

    def holders(self) -> list[str]:
        """Return the ids of the instances that hold work."""
        keys = self.redis.scan_iter(match=self.keys.inflight + "*", count=1000)
        return [key.decode().removeprefix(self.keys.inflight) for key in keys]

    def wait_ready(self, count: int = 1) -> list[InstanceRecord]:
        wait_until(lambda: len(self.ready()) >= count, 60, f"{count} ready {self.model}")
        return self.ready()

    def wait_in_flight(self) -> str:
        """Return the id of the instance that holds work, once one does."""
        found: list[str] = []
        wait_until(
            lambda: found.extend(self.holders()) or found,
            10,
            f"a request of {self.model} in flight",
        )
        return found[0]

    def holder(self) -> InstanceRecord:
        """Return the instance that holds work, once one does."""
        held_by = self.wait_in_flight()
        return next(record for record in self.records() if record.id == held_by)

    def kill_in_mid_batch(self, value: float) -> tuple[PendingRequest, InstanceRecord]:
        """Ask for `value` and kill the instance that computes it; return the request and its id.

        One that has published before it was killed was not in mid-batch, and `value` is asked for
        again.
        """
        while True:
            asked, victim = self.push(value), self.holder()
            if self.kill_if_it_holds_work(victim):
                return asked, victim
            asked.wait()

    def kill_if_it_holds_work(self, victim: InstanceRecord) -> bool:
        """Kill an instance, unless it holds nothing once it is halted; tell which."""
        os.kill(victim.pid, signal.SIGSTOP)
        held = victim.id in self.holders()
        os.kill(victim.pid, signal.SIGKILL if held else signal.SIGCONT)
        return held


@contextmanager
def seen(settings: Settings, model: str) -> Iterator[Served]:
    """Look at one served model."""
    with connect(settings.redis_url) as redis:
        yield Served(settings, redis, model)


def numbers(result: InferResult) -> Array:
    """Return a result's first output."""
    return result.outputs[0].array()


def descendants(pid: int) -> list[int]:
    """Return the ids of all processes below `pid`."""
    parents = {child: parent_of(child) for child in _processes()}
    found = [pid]
    for ancestor in found:
        found += [child for child, parent in parents.items() if parent == ancestor]
    return found[1:]


def parent_of(pid: int) -> int:
    """Return a process's parent, 0 when it is gone."""
    return int((_stat(pid) or ["Z", "0"])[1])


def runs(pid: int) -> bool:
    """Tell whether a process is there and no zombie."""
    fields = _stat(pid)
    return fields is not None and fields[0] != "Z"


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _stat(pid: int) -> list[str] | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
