"""One instance on a simulated device that takes its input over and computes nothing.

A child of `bench.engine.pipeline` (`python -m bench.children.copying_device REDIS_URL`): answers
each line `BATCH_SECONDS BATCHES DEPTH` with a JSON line, once so many batches are answered. It ends
with its standard input.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from multiprocessing import Pipe
from pathlib import Path

import numpy as np

from shared.bodies.common_memory import CommonMemory
from shared.bodies.worker_bodies import WorkerBodies
from shared.datatypes import Array
from shared.model_spec import ModelSpec, TensorSpec
from worker.devices import Placement
from worker.instance.health.self_check import SelfCheck
from worker.instance.passes.serving import WarmBackend, WarmInstance, run_lanes
from worker.job import InstanceJob
from worker.meter import Meter
from worker.repository.config.parameters import PIPELINE_DEPTH

PREFIX = "pipeline"
ROWS = 32
PICTURE = (224, 224, 3)
CLASSES = 10
INSTANCE = "copying"


class CopyingDevice:
    """Copies its input into memory of its own, then is busy for a while; both are its time."""

    def __init__(self) -> None:
        """Have taken nothing yet."""
        self._memory = np.zeros((ROWS, *PICTURE), np.uint8)
        self.batch_seconds = 0.0
        self.began_at = self.ended_at = self.busy_seconds = self.copy_seconds = 0.0

    def forward(self, inputs: Mapping[str, Array], pixels: frozenset[str]) -> dict[str, Array]:
        """See `Backend.forward`; `pixels` is always empty."""
        began = time.monotonic()
        rows = len(inputs["pixels"])
        np.copyto(self._memory[:rows], inputs["pixels"])
        copied = time.monotonic()
        time.sleep(self.batch_seconds)
        self.ended_at = time.monotonic()
        self.began_at = self.began_at or began
        self.copy_seconds += copied - began
        self.busy_seconds += self.ended_at - began
        return {"scores": np.zeros((rows, CLASSES), np.float32)}


def copying_spec(depth: int = 1) -> ModelSpec:
    """Return the spec of a model of batches of up to 32 pictures of 150,528 bytes."""
    return ModelSpec(
        name="copying",
        version="1",
        platform="simulated",
        max_batch_size=ROWS,
        inputs=(TensorSpec(name="pixels", datatype="UINT8", dims=PICTURE),),
        outputs=(TensorSpec(name="scores", datatype="FP32", dims=(CLASSES,)),),
        parameters={PIPELINE_DEPTH: str(depth)},
    )


def measure(redis_url: str, batch_seconds: float, batches: int, depth: int) -> dict[str, float]:
    """Answer so many batches, which wait on the queue; return how the device spent the time."""
    spec, device, meter = copying_spec(depth), CopyingDevice(), Meter()
    device.batch_seconds = batch_seconds
    job = InstanceJob(
        INSTANCE, spec, "simulated", Path(), Placement("cpu"), redis_url, PREFIX, 1.0, "WARNING"
    )
    reader, writer = Pipe(duplex=False)
    warm = WarmBackend(device, SelfCheck(learns=False))
    cpu_began = time.process_time()
    serving = WarmInstance(
        job, warm, meter, lambda: meter.row_count >= batches * ROWS, None, None,
        bodies=WorkerBodies(CommonMemory.of(1)),
    )  # fmt: skip
    run_lanes(serving, None, writer)
    reader.close()
    writer.close()
    count = meter.batch_count
    return {
        "seconds": (device.ended_at - device.began_at) / count,
        "busy": device.busy_seconds / count,
        "copy": device.copy_seconds / count,
        "cpu": (time.process_time() - cpu_began) / count,
        "rows": meter.row_count / count,
    }


def main() -> None:
    """Measure as told until standard input ends."""
    print("ready", flush=True)
    for line in sys.stdin:
        seconds, *whole = line.split()
        print(json.dumps(measure(sys.argv[1], float(seconds), *map(int, whole))), flush=True)


if __name__ == "__main__":
    main()
