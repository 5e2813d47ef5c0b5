"""One instance on a simulated device that takes pictures, in a fixed time for a batch.

A child of `bench.engine.body_paths`: `python -m bench.children.picture_device REDIS_URL MODEL
INSTANCE SHARED_BODY_BYTES BODY_URLS BATCH_SECONDS`. It says `ready`, and serves until SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from functools import partial

import numpy as np

from shared.bodies.worker_bodies import WorkerBodies
from shared.datatypes import Array
from shared.model_spec import ModelSpec, TensorSpec
from shared.request_queue.keys import QueueKeys
from shared.request_queue.worker_end import WorkQueue
from shared.wire.client import connect
from shared.wire.wire import open_wire
from worker.instance.batch import answer_batch
from worker.instance.loop import run
from worker.meter import Meter

PATHS_PREFIX = "paths"
BATCH_ROWS = 32


class PictureDevice:
    """Looks at all pixels once, and answers how many rows there were, a fixed time later."""

    def __init__(self, batch_seconds: float) -> None:
        """Take so long for each batch."""
        self._seconds = batch_seconds

    def forward(self, inputs: Mapping[str, Array], pixels: frozenset[str]) -> dict[str, Array]:
        """See `Backend.forward`; `pixels` is always empty."""
        began = time.monotonic()
        found = inputs["x"].max(axis=1)[:, None].astype(np.float32)
        time.sleep(max(0.0, began + self._seconds - time.monotonic()))
        return {"y": found}


def picture_spec(name: str) -> ModelSpec:
    """Return the spec of a model of batches of bytes, any number of them in a row."""
    return ModelSpec(
        name=name,
        version="1",
        platform="simulated",
        max_batch_size=BATCH_ROWS,
        inputs=(TensorSpec(name="x", datatype="UINT8", dims=(-1,)),),
        outputs=(TensorSpec(name="y", datatype="FP32", dims=(1,)),),
    )


def main() -> None:
    """Serve until SIGTERM, or until the benchmark that started this is gone."""
    redis_url, name, instance, shared_body_bytes, body_urls, seconds = sys.argv[1:]
    parent, stopping = os.getppid(), list[int]()
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
    spec = picture_spec(name)
    queue = WorkQueue(
        open_wire(connect(redis_url)),
        QueueKeys(PATHS_PREFIX, spec.key),
        instance,
        result_ttl_seconds=60.0,
    )
    queue.bodies = WorkerBodies.of(int(shared_body_bytes), body_urls, PATHS_PREFIX)
    answer = partial(
        answer_batch, spec=spec, backend=PictureDevice(float(seconds)), instance=instance,
        bodies=queue.bodies,
    )  # fmt: skip
    print("ready", flush=True)
    run(
        queue,
        answer,
        lambda: bool(stopping) or os.getppid() != parent,
        Meter(),
        max_rows=BATCH_ROWS,
        max_delay_seconds=0.0,
    )


if __name__ == "__main__":
    main()
