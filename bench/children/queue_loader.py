"""Keeps simulated devices busy through the request queue, as an API process with many clients.

A child of the benchmark (`python -m bench.children.queue_loader REDIS_URL`): prints `ready`, then
answers each line `INSTANCES SECONDS` with a JSON line of what it got. It ends with its standard
input.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque

import numpy as np

from api.infer.question import Pending, Question
from api.infer.queues import Queues
from bench.children.simulated_device import (
    BATCH_ROWS,
    KEY_PREFIX,
    WIDTH,
    model_name,
    simulated_spec,
)
from shared.messages import InferResult, Tensor
from shared.registry.catalog import Catalog
from shared.registry.registry import Registry
from shared.settings import Settings
from shared.wire.client import connect

# One batch in each instance's hands and two on the queue.
BATCHES_IN_FLIGHT_PER_INSTANCE = 3
START_TIMEOUT_SECONDS = 30.0
BATCH_SIZES_KEPT = 100


class FullQueue:
    """Keeps a model's queue full: for every answer that comes, one request goes."""

    def __init__(self, queues: Queues, instance_count: int) -> None:
        """Bind to the queue that `instance_count` instances serve."""
        self._queues = queues
        self._instance_count = instance_count
        self._spec = simulated_spec(model_name(instance_count))
        self._inputs = (Tensor.of("input", np.ones((1, WIDTH), np.float32)),)
        self._waiting: deque[Pending] = deque()

    def measure(self, seconds: float) -> tuple[float, list[int]]:
        """Return answers per second once every instance has answered, and some batch sizes.

        Drains the queue before it returns. Raises what a request or an answer raises.
        """
        self._waiting.extend(self._push() for _ in range(requests_in_flight(self._instance_count)))
        self._wait_for_all_instances()
        sizes: list[int] = []
        started = time.monotonic()
        while time.monotonic() - started < seconds:
            sizes.append(self._exchange().timings.batch_size)
        elapsed = time.monotonic() - started
        while self._waiting:
            self._waiting.popleft().wait()
        return len(sizes) / elapsed, sizes[-BATCH_SIZES_KEPT:]

    def _wait_for_all_instances(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        seen: set[str] = set()
        while len(seen) < self._instance_count:
            if time.monotonic() > deadline:
                raise SystemExit(f"of {self._instance_count} instances only {sorted(seen)} answer")
            seen.add(self._exchange().timings.instance)

    def _exchange(self) -> InferResult:
        """Take the oldest answer and push one request; the queue is fair, so it is due next."""
        result = self._waiting.popleft().wait()
        self._waiting.append(self._push())
        return result

    def _push(self) -> Pending:
        return self._queues.push(Question(self._spec, self._inputs))


def requests_in_flight(instance_count: int) -> int:
    """Return how many requests keep so many instances busy."""
    return BATCH_ROWS * BATCHES_IN_FLIGHT_PER_INSTANCE * instance_count


def main() -> None:
    """Load as told until standard input ends."""
    client, settings = connect(sys.argv[1]), Settings(key_prefix=KEY_PREFIX)
    queues = Queues(client, settings, Catalog(Registry(client, KEY_PREFIX)))
    print("ready", flush=True)
    for line in sys.stdin:
        count, seconds = line.split()
        per_second, sizes = FullQueue(queues, int(count)).measure(float(seconds))
        print(json.dumps({"per_second": per_second, "batch_sizes": sizes}), flush=True)


if __name__ == "__main__":
    main()
