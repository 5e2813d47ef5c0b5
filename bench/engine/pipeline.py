"""A device kept busy: the share of time that one instance has it work, and what takes the rest.

    python -m bench.engine.pipeline [--milliseconds 20 10 5 3.2] [--bodies memory redis]
        [--rounds COUNT] [--batches COUNT]

The device copies its input, 32 pictures of 150 KB, and then sleeps; it computes nothing. What it
answers was put on the queue before, its pixels in shared memory or in Redis, so that two cores need
not feed it at the same time: the instance and Redis are all that runs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from secrets import token_hex
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from bench.children.copying_device import PICTURE, PREFIX, ROWS, copying_spec
from bench.processes import BenchError, Child, running
from ferry.up import embedded_valkey
from shared.bodies.common_memory import CommonMemory
from shared.bodies.folder import BodyFolder, Budget, PlacedBody, SharedBodies
from shared.messages import InferRequest, Tensor
from shared.request_queue.commands import as_push, push_command
from shared.request_queue.keys import QueueKeys
from shared.request_queue.limits import Limits
from shared.wire.client import connect
from shared.wire.wire import open_wire

TIMEOUT_SECONDS = 120.0
PUSHED_AT_ONCE = 8
MILLISECONDS = (20.0, 10.0, 5.0, 3.2)
DEPTHS = (1, 2)
MEMORY, REDIS = "memory", "redis"
MEMORY_BYTES = 2**32


class Run(NamedTuple):
    """One measurement, in seconds a batch; `redis` is the time of its one thread."""

    seconds: float
    busy: float
    copy: float
    cpu: float
    rows: float
    redis: float

    @property
    def share(self) -> float:
        """Return the share of the time that the device was busy."""
        return self.busy / self.seconds


def main(arguments: Sequence[str]) -> int:
    """Measure all in turn, and print."""
    parser = argparse.ArgumentParser(prog="pipeline", description=__doc__.partition("\n")[0])
    parser.add_argument("--milliseconds", type=float, nargs="+", default=MILLISECONDS)
    parser.add_argument(
        "--bodies", choices=(MEMORY, REDIS), nargs="+", default=(MEMORY,),
        help="where pixels lie until they are claimed [memory]",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3, help="of each, whose medians count [3]")
    parser.add_argument("--batches", type=int, default=40, help="of each measurement [40]")
    options = parser.parse_args(arguments)
    found: dict[tuple[str, float, int], list[Run]] = {
        each: [] for each in product(options.bodies, options.milliseconds, DEPTHS)
    }
    with TemporaryDirectory(prefix="ferry-bench-") as directory, bench(Path(directory)) as feed:
        feed.run(REDIS, MILLISECONDS[-1], 4, 1)  # the first ones connect and load scripts
        for _ in range(options.rounds):
            for (bodies, milliseconds, depth), runs in found.items():
                runs.append(feed.run(bodies, milliseconds, options.batches, depth))
    print(f"load {os.getloadavg()[0]:.1f}; milliseconds a batch of {ROWS} x {np.prod(PICTURE)} B")
    print(
        "bodies  device  depth   busy  (rounds)      batch   rest  copy  its CPU  Redis' CPU   rows"
    )
    for (bodies, milliseconds, depth), runs in found.items():
        print(f"{bodies:6}  {line(milliseconds, depth, runs)}")
    return 0


def line(milliseconds: float, depth: int, runs: Sequence[Run]) -> str:
    """Return one row of the table: medians of its rounds."""
    shares = [run.share for run in runs]
    found = Run(*(median(each) for each in zip(*runs, strict=True)))
    rest = median([run.seconds - run.busy for run in runs])
    return (
        f"{milliseconds:6.1f}  {depth:5}  {median(shares):5.2f}  ({min(shares):.2f}-"
        f"{max(shares):.2f})  {1000 * found.seconds:7.1f}  {1000 * rest:5.1f}  "
        f"{1000 * found.copy:4.1f}  {1000 * found.cpu:7.1f}  {1000 * found.redis:10.1f}  "
        f"{found.rows:5.1f}"
    )


class Feed:
    """A queue that is filled before each measurement, and the instance that answers it."""

    def __init__(self, redis_url: str, instance: Child) -> None:
        """Bind to a Redis that is nobody else's."""
        self._client = connect(redis_url)
        self._wire = open_wire(self._client)
        self._instance = instance
        self._keys = QueueKeys(PREFIX, copying_spec().key)
        self._limits = Limits(requests=10**6, bytes=2**40)
        self._number = 0
        picture = np.random.default_rng(1).integers(0, 256, (1, *PICTURE), np.uint8)
        self._inputs = (Tensor.of("pixels", picture),)
        self._process = token_hex(4)
        memory = CommonMemory.of(MEMORY_BYTES)
        if memory is None:
            raise BenchError("there is no shared memory")
        bodies = SharedBodies(memory, Budget(MEMORY_BYTES), lambda _: memory.token)
        self._folder = BodyFolder(bodies, self._process, self._keys.tag)
        self._placed: list[PlacedBody] = []

    def run(self, bodies: str, milliseconds: float, batches: int, depth: int) -> Run:
        """Fill the queue, have it answered and return what that took."""
        for _ in range(batches * ROWS // PUSHED_AT_ONCE):
            self._wire.send(push_command(self._keys, self._limits, self._pushes(bodies)))
            self._wire.reply()
        try:
            return self._measured(milliseconds, batches, depth)
        finally:
            while self._placed:
                self._placed.pop().free()

    def _measured(self, milliseconds: float, batches: int, depth: int) -> Run:
        before = self._thread_seconds()
        self._instance.tell(f"{milliseconds / 1000} {batches} {depth}")
        said: dict[str, Any] = json.loads(self._instance.answer(TIMEOUT_SECONDS))
        return Run(**said, redis=(self._thread_seconds() - before) / batches)

    def _pushes(self, bodies: str) -> Iterator[Any]:
        for _ in range(PUSHED_AT_ONCE):
            self._number += 1
            request_id = f"{self._process}{self._number:024x}"
            request = InferRequest(request_id, 1, self._inputs, (), TIMEOUT_SECONDS)
            body = self._in_memory(request) if bodies == MEMORY else b""
            yield as_push(request, self._keys, self._limits, body=body)

    def _in_memory(self, request: InferRequest) -> bytes:
        placed = self._folder.put(request)
        if placed is None:
            raise BenchError("shared memory has no room")
        self._placed.append(placed)
        return placed.message

    def _thread_seconds(self) -> float:
        """Return what Redis' one thread has run."""
        info = self._client.info("cpu")
        return float(info["used_cpu_user_main_thread"]) + float(info["used_cpu_sys_main_thread"])


@contextmanager
def bench(directory: Path) -> Iterator[Feed]:
    """Yield a queue and its instance, each in a process that ends with the block."""
    with embedded_valkey.running(directory) as redis:
        command = [sys.executable, "-m", "bench.children.copying_device", redis.url]
        log_file = directory / "instance.log"
        with running(command, os.environ, log_file, piped=True) as process:
            child = Child(process, log_file)
            child.answer(TIMEOUT_SECONDS)
            yield Feed(redis.url, child)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
