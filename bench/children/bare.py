"""The limit of the model: one process that runs full batches and does nothing else.

A child of the benchmark (`python -m bench.children.bare MODEL REPOSITORY THREADS`): prints `ready`,
then answers each line `forward SECONDS` or `pictures SECONDS` with the rows it ran per second. It
ends with its standard input. What it runs is Ferry's own code for these steps, so the distance to
Ferry is what HTTP, the queue and batching cost.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from bench.scenarios import SCENARIOS, SENTENCE
from shared.datatypes import NUMPY_TYPES, Array
from shared.inputs.pictures import picture_batch
from shared.model_spec import ModelSpec
from worker.backends.base import Backend
from worker.instance.process import load_backend
from worker.instance.warmup import MadeUpPasses, warm_up
from worker.job import InstanceJob
from worker.meter import Meter
from worker.preflight.look import devices_here
from worker.preflight.own_device import take
from worker.repository.models import ServedModel, read_model
from worker.supervisor.placement import assign

BATCH_ROWS = 32


def main() -> None:
    """Load the model, then measure as told until standard input ends."""
    name, repository, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    model = read_model(repository, name)
    backend = bare_backend(model, threads)
    pixels = frozenset({model.spec.image.input} if model.spec.image else ())
    warm_up(model.spec, MadeUpPasses(model.spec, backend, pixels, Meter()))
    with ThreadPoolExecutor(threads) as pool:
        steps = _steps(model, backend, pool if threads > 1 else None)
        print("ready", flush=True)
        for line in sys.stdin:
            kind, seconds = line.split()
            print(_rows_per_second(steps[kind], float(seconds)), flush=True)


def bare_backend(model: ServedModel, threads: int) -> Backend:
    """Return a loaded model that is not warmed up."""
    placed, failures = assign([model], devices_here(os.environ), threads)
    assert not failures, failures
    job = InstanceJob(
        "bare", model.spec, model.config.backend, model.file, take(placed[0][1]),
        redis_url="", key_prefix="bare", result_ttl_seconds=0.0, log_level="WARNING",
    )  # fmt: skip
    return load_backend(job)


def _steps(
    model: ServedModel, backend: Backend, pool: ThreadPoolExecutor | None
) -> dict[str, Callable[[], int]]:
    """Return what can be measured: each runs one batch and returns its rows."""
    image, rows = model.spec.image, min(BATCH_ROWS, model.spec.batch_rows)
    body = SCENARIOS[model.spec.name].body()
    pixels = frozenset({image.input} if image else ())
    inputs = _inputs(model, rows, body)

    def forward() -> int:
        backend.forward(inputs, pixels)
        return rows

    def pictures() -> int:
        assert image is not None, "only asked of models that take pictures"
        bodies = [body] * rows
        decoded = (pool.map if pool else map)(lambda data: _decoded(data, model.spec), bodies)
        backend.forward({image.input: np.concatenate(list(decoded))}, pixels)
        return rows

    return {"forward": forward, "pictures": pictures}


def _inputs(model: ServedModel, rows: int, body: bytes) -> Mapping[str, Array]:
    """Return one batch of what the scenario sends, as it arrives at the backend."""
    spec = model.spec
    if spec.image:
        return {spec.image.input: np.repeat(_decoded(body, spec), rows, axis=0)}
    if model.asset:
        encoding = Tokenizer.from_buffer(model.asset).encode(SENTENCE)
        length = sum(encoding.attention_mask)  # without the padding that the file may ask for
        columns = {
            "input_ids": encoding.ids[:length],
            "attention_mask": encoding.attention_mask[:length],
            "token_type_ids": encoding.type_ids[:length],
        }
        return {name.name: np.array([columns[name.name]] * rows, np.int64) for name in spec.inputs}
    return {
        tensor.name: np.ones((rows, *tensor.dims), NUMPY_TYPES[tensor.datatype])
        for tensor in spec.inputs
    }


def _decoded(data: bytes, spec: ModelSpec) -> Array:
    return picture_batch([data], spec).array()


def _rows_per_second(step: Callable[[], int], seconds: float) -> float:
    step()
    started = time.monotonic()
    rows = 0
    while time.monotonic() - started < seconds:
        rows += step()
    return rows / (time.monotonic() - started)


if __name__ == "__main__":
    main()
