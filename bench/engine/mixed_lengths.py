"""Texts of mixed lengths: one forward pass for each batch beside passes by length.

    python -m bench.engine.mixed_lengths [--median TOKENS] [--sigma NUMBER] [--rounds COUNT]

Answers the same batches of 32 of the sample `sentiment` both ways in turn, in one process without
HTTP or a queue. Lengths are drawn log-normally, which fits comments and reviews, and cut where the
model cuts; tokens are drawn by chance, on which the time does not depend.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch

from bench.children.bare import BATCH_ROWS, bare_backend
from ferry.commands.samples import make_samples
from shared.datatypes import Array
from shared.messages import InferRequest, InferResult, Tensor
from shared.model_spec import ModelSpec
from shared.request_queue.claimed import Claimed
from worker.backends.base import Backend
from worker.instance.batch import answer_batch
from worker.instance.passes.costs import PassCosts, Sharing
from worker.repository.models import read_model

MODEL = "sentiment"
BATCHES = 8
LONGEST = 128
"""Tokens: the sample's own limit."""
THREADS = 2
LEAST_RATIO = 1.5


def main(arguments: Sequence[str]) -> int:
    """Measure and print; 1 when passes by length are less than 1.5 times as fast."""
    parser = argparse.ArgumentParser(prog="mixed_lengths", description=__doc__.partition("\n")[0])
    parser.add_argument("--median", type=float, default=18.0, help="tokens [18]")
    parser.add_argument("--sigma", type=float, default=0.9, help="of the logarithms [0.9]")
    parser.add_argument("--rounds", type=int, default=7, help="of each way [7]")
    options = parser.parse_args(arguments)
    with TemporaryDirectory(prefix="ferry-bench-") as directory:
        make_samples([MODEL], Path(directory))
        model = read_model(Path(directory), MODEL)
        backend = bare_backend(model, THREADS)
        lengths = drawn(options.median, options.sigma)
        batches = [batch(each) for each in lengths.reshape(BATCHES, BATCH_ROWS)]
        return compare(batches, model.spec, backend, options.rounds)


def drawn(middle: float, sigma: float) -> Array:
    """Return the lengths of all texts, int64, the same in each run."""
    chance = np.random.default_rng(1)
    found = chance.lognormal(np.log(middle), sigma, BATCHES * BATCH_ROWS)
    return np.clip(found, 3, LONGEST).astype(np.int64)


def batch(lengths: Array) -> list[Claimed]:
    """Return one request of one text for each length, as a worker holds them."""
    chance = np.random.default_rng(int(lengths.sum()))
    return [
        _claimed(str(index), chance.integers(1000, 20000, (1, length)))
        for index, length in enumerate(lengths)
    ]


def _claimed(request_id: str, tokens: Array) -> Claimed:
    inputs = (Tensor.of("input_ids", tokens), Tensor.of("attention_mask", np.ones_like(tokens)))
    return Claimed(request_id, 1, 1, 0.0, InferRequest(request_id, 1, inputs).encode())


def compare(
    batches: Sequence[list[Claimed]], spec: ModelSpec, backend: Backend, rounds: int
) -> int:
    """Print both rates; 1 when the ratio is below what is wanted."""
    costs = PassCosts()
    first, second = answered(batches, spec, backend), answered(batches, spec, backend, costs)
    apart = max(float(np.abs(a - b).max()) for a, b in zip(first[1], second[1], strict=True))
    ratios, rates = [], []
    for _ in range(rounds):
        rates.append(
            (answered(batches, spec, backend)[0], answered(batches, spec, backend, costs)[0])
        )
        ratios.append(rates[-1][1] / rates[-1][0])
    together, by_length = (median(each) for each in zip(*rates, strict=True))
    print(f"one pass for each batch {together:7.1f} rows/s")
    print(f"passes by length        {by_length:7.1f} rows/s")
    print(
        f"{median(ratios):.2f} x, {min(ratios):.2f} to {max(ratios):.2f} in {rounds} rounds; "
        f"wanted {LEAST_RATIO}"
    )
    print(f"logits differ by {apart:.1e} at most; a pass costs {costs.known()}")
    return int(median(ratios) < LEAST_RATIO)


def answered(
    batches: Sequence[list[Claimed]],
    spec: ModelSpec,
    backend: Backend,
    costs: PassCosts | None = None,
) -> tuple[float, list[Array]]:
    """Answer all batches; returns rows per second, and the first output of every text."""
    began = time.perf_counter()
    with torch.inference_mode():
        results = [
            answer_batch(each, spec, backend, "bench", sharing=Sharing(costs=costs)).results
            for each in batches
        ]
    rate = len(batches) * BATCH_ROWS / (time.perf_counter() - began)
    outputs = [InferResult.decode(one).outputs[0].array() for each in results for one in each]
    return rate, outputs


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
