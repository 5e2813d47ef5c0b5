"""A device whose every batch takes 20 ms: how near does throughput come to linear in instances?

As a child of the benchmark (`python -m bench.children.simulated_device REDIS_URL MODEL INSTANCE`)
it is one instance: Ferry's loop, batching and queue around a backend that sleeps, in a process of
its own.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from functools import partial

from shared.datatypes import Array
from shared.model_spec import ModelSpec, TensorSpec
from shared.request_queue.keys import QueueKeys
from shared.request_queue.worker_end import WorkQueue
from shared.wire.client import connect
from shared.wire.wire import open_wire
from worker.instance.batch import answer_batch
from worker.instance.loop import run
from worker.meter import Meter

KEY_PREFIX = "bench"
BATCH_SECONDS = 0.020
BATCH_ROWS = 8
WIDTH = 16


class SleepingBackend:
    """Returns its input, 20 ms later, however many rows there are."""

    def forward(self, inputs: Mapping[str, Array], pixels: frozenset[str]) -> dict[str, Array]:
        """See `Backend.forward`; `pixels` is always empty."""
        time.sleep(BATCH_SECONDS)
        return {"output": inputs["input"]}


def model_name(instance_count: int) -> str:
    """Return the name of the simulated model that so many instances serve."""
    return f"simulated{instance_count}"


def simulated_spec(name: str) -> ModelSpec:
    """Return the spec of a model of batches of up to 8 rows of 16 floats."""
    return ModelSpec(
        name=name,
        version="1",
        platform="simulated",
        max_batch_size=BATCH_ROWS,
        inputs=(TensorSpec(name="input", datatype="FP32", dims=(WIDTH,)),),
        outputs=(TensorSpec(name="output", datatype="FP32", dims=(WIDTH,)),),
    )


def main() -> None:
    """Serve until SIGTERM, or until the benchmark that started this is gone."""
    redis_url, name, instance = sys.argv[1:]
    parent, stopping = os.getppid(), list[int]()
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
    spec = simulated_spec(name)
    queue = WorkQueue(
        open_wire(connect(redis_url)),
        QueueKeys(KEY_PREFIX, spec.key),
        instance,
        result_ttl_seconds=60.0,
    )
    run(
        queue,
        partial(answer_batch, spec=spec, backend=SleepingBackend(), instance=instance),
        lambda: bool(stopping) or os.getppid() != parent,
        Meter(),
        max_rows=BATCH_ROWS,
        max_delay_seconds=0.0,
    )


if __name__ == "__main__":
    main()
