"""What a picture costs by each way between API and instance: through Redis, in memory, in stores.

    python -m bench.engine.body_paths [--seconds N] [--rounds N] [--devices 1 2] [--servers]

Pictures of 150,528 bytes are pushed by this process, as an API process does without its HTTP, and
answered by instances on simulated devices of 20 ms for a batch of 32. Per picture are told the
processor time of the main Redis' thread, of the stores, of this process and of the instances. With
`--servers` the ways differ in what the servers are started with: `io-threads`, append-only file.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from threading import Semaphore, Thread
from typing import NamedTuple

import numpy as np
from redis import Redis

from bench.children.picture_device import PATHS_PREFIX, picture_spec
from bench.many_models import family_of
from bench.processes import BenchError, Child, running
from ferry.up.embedded_valkey import socket_path, spawn, wait_until_answers
from shared.bodies.stored import beside_redis
from shared.messages import InferRequest, Tensor
from shared.request_queue.api_end import PendingRequest, RequestQueue
from shared.request_queue.keys import QueueKeys
from shared.request_queue.limits import Limits
from shared.settings import Settings
from shared.wire.client import connect

BATCH_SECONDS = 0.02
PICTURE_BYTES = 150_528
SMALL_BYTES = 64
IN_FLIGHT = 128
PUSHERS = 4
START_SECONDS = 60.0
OF_STORES = ("--appendonly", "no", "--save", "")


class Way(NamedTuple):
    """A way between API and instance, and what its servers are started with."""

    name: str
    shared_body_bytes: int = 0
    stores: int = 0
    redis_options: tuple[str, ...] = ()
    store_options: tuple[str, ...] = ()
    size: int = PICTURE_BYTES


WAYS = (
    Way("through Redis"),
    Way("shared memory", shared_body_bytes=256 * 2**20),
    Way("1 store", stores=1),
    Way("2 stores", stores=2),
    Way("4 stores", stores=4),
    Way("small, without stores", size=SMALL_BYTES),
    Way("small, with 2 stores", stores=2, size=SMALL_BYTES),
)
NO_FILE = ("--appendonly", "no")
SERVER_WAYS = tuple(
    Way(f"Redis, {count} io-threads{said}", 0, 0, ("--io-threads", count, *options))
    for count in ("1", "2", "4")
    for said, options in (("", ()), (", no file", NO_FILE))
) + tuple(
    Way(f"1 store, {count} io-threads", 0, 1, (), ("--io-threads", count))
    for count in ("1", "2", "4")
)


class Costs(NamedTuple):
    """One measurement; the rest is microseconds of processor for each picture."""

    per_second: float
    redis_us: float
    redis_all_us: float
    stores_us: float
    api_us: float
    instances_us: float


def main(arguments: Sequence[str]) -> int:
    """Measure all, one after the other in each round, and print the medians."""
    parser = argparse.ArgumentParser(prog="body_paths", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="per measurement [3]")
    parser.add_argument("--rounds", type=int, default=5, help="whose medians count [5]")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2], help="[1 2]")
    parser.add_argument("--servers", action="store_true", help="io-threads, append-only file")
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        ends = {
            (way, devices): stack.enter_context(started(way, devices))
            for way in (SERVER_WAYS if options.servers else WAYS)
            for devices in options.devices
        }
        found: dict[tuple[Way, int], list[Costs]] = {each: [] for each in ends}
        for number in range(options.rounds + 1):
            for each, end in ends.items():
                costs = end.measure(options.seconds if number else 1.0)
                if number:  # the first one warms
                    found[each].append(costs)
    print(f"{'':26} devices  answers/s  Redis us  (all)  stores us  API us  instances us")
    for (way, devices), rounds in found.items():
        one = Costs(*map(median, zip(*rounds, strict=True)))
        print(
            f"{way.name:26} {devices:7}  {one.per_second:9.0f}  {one.redis_us:8.0f}  "
            f"{one.redis_all_us:5.0f}  {one.stores_us:9.0f}  {one.api_us:6.0f}  "
            f"{one.instances_us:12.0f}"
        )
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    return 0


class Ends:
    """An API process' end of a way, and the instances at the other."""

    def __init__(self, way: Way, queue: RequestQueue, redis: Redis, stores: list[Redis]) -> None:
        """Push by `queue`; `pids` are the instances'."""
        self._queue = queue
        self._redis = redis
        self._stores = stores
        self.pids = list[int]()
        pixels = np.random.default_rng(1).integers(0, 256, (1, way.size), np.uint8)
        self._inputs = (Tensor.of("x", pixels),)
        self._signature = picture_spec("x").signature(self._inputs)
        self._answered = 0
        self._failed = list[str]()

    def measure(self, seconds: float) -> Costs:
        """Ask for so long; return what an answer cost. Raises BenchError when one fails."""
        places, until = Semaphore(IN_FLIGHT), time.monotonic() + seconds
        before, count = self._spent(), self._answered
        pushers = [Thread(target=self._push, args=(places, until)) for _ in range(PUSHERS)]
        for each in pushers:
            each.start()
        for each in pushers:
            each.join()
        for _ in range(IN_FLIGHT):
            if not places.acquire(timeout=START_SECONDS):
                raise BenchError("requests are not answered")
        took = time.monotonic() - until + seconds
        if self._failed:
            raise BenchError(f"{len(self._failed)} requests failed: {self._failed[0]}")
        answered = self._answered - count
        spent = [now - then for now, then in zip(self._spent(), before, strict=True)]
        return Costs(answered / took, *(1e6 * each / answered for each in spent))

    def _push(self, places: Semaphore, until: float) -> None:
        while time.monotonic() < until:
            places.acquire()
            request = InferRequest(
                self._queue.new_id(), 1, self._inputs, (), START_SECONDS, self._signature
            )
            held = list[PendingRequest]()
            held.append(self._queue.push(request, None, partial(self._done, held, places)))

    def _done(self, held: list[PendingRequest], places: Semaphore) -> None:
        if held and held[0].error is not None:
            self._failed.append(str(held[0].error))
        self._answered += 1
        places.release()

    def _spent(self) -> list[float]:
        """Return the seconds of the main Redis' thread, all of it, stores, ourselves, instances."""
        main, every = _seconds(self._redis)
        stores = sum(_seconds(each)[1] for each in self._stores)
        instances = sum(sum(family_of(pid).values()) for pid in self.pids)
        return [main, every, stores, time.process_time(), instances]


def _seconds(redis: Redis) -> tuple[float, float]:
    info = redis.info("cpu")
    main = info["used_cpu_user_main_thread"] + info["used_cpu_sys_main_thread"]
    return float(main), float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


@contextmanager
def started(way: Way, devices: int) -> Iterator[Ends]:
    """Run the servers and instances of a way."""
    with ExitStack() as stack:
        url = stack.enter_context(server(way.redis_options))
        urls = [
            stack.enter_context(server((*OF_STORES, *way.store_options))) for _ in range(way.stores)
        ]
        settings = Settings(
            redis_url=url, key_prefix=PATHS_PREFIX, shared_body_bytes=way.shared_body_bytes,
            body_urls=",".join(urls),
        )  # fmt: skip
        beside = beside_redis(settings, lambda _: "", lambda _: "")
        memory, stored = beside
        if memory is not None:
            token = memory.memory.token
            memory = memory._replace(seen_by=lambda _: token)
        if stored is not None:
            stores_token = stored.stores.token
            stored = stored._replace(seen_by=lambda _: stores_token)
        keys = QueueKeys.of(picture_spec("pictures"), PATHS_PREFIX)
        client = connect(url)
        queue = RequestQueue(client, keys, Limits(10**6, 2**40), memory, stored)
        ends = Ends(way, queue, client, [connect(each) for each in urls])
        for number in range(devices):
            command = [
                sys.executable, "-m", "bench.children.picture_device", url, "pictures",
                f"i{number}", str(way.shared_body_bytes), settings.body_urls, str(BATCH_SECONDS),
            ]  # fmt: skip
            directory = stack.enter_context(TemporaryDirectory(prefix="ferry-bench-"))
            log_file = Path(directory) / "instance.log"
            process = stack.enter_context(running(command, os.environ, log_file, piped=True))
            Child(process, log_file).answer(START_SECONDS)
            ends.pids.append(process.pid)
        yield ends
        queue._courier.rest()


@contextmanager
def server(options: tuple[str, ...]) -> Iterator[str]:
    """Run a Valkey; yields its URL."""
    with TemporaryDirectory(prefix="ferry-bench-") as directory:
        found = spawn(Path(directory), socket_path(Path(directory)), options=options)
        try:
            wait_until_answers(found)
            yield found.url
        finally:
            found.stop()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
