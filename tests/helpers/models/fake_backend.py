"""A backend without torch, a model for it and claimed requests, for tests of the worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from shared.datatypes import Array
from shared.messages import InferRequest, Tensor
from shared.model_spec import ModelSpec, TensorSpec
from shared.request_queue.claimed import Claimed, EncodedResults
from shared.request_queue.model_statistics import Pass, encode_costs


def doubled(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Answer `y` = 2 `x`."""
    return {"y": inputs["x"] * np.float32(2)}


class FakeBackend:
    """Answers with `model`, raises while `poison` is among the values of `x`; counts its passes."""

    def __init__(
        self,
        model: Callable[[Mapping[str, Array]], dict[str, Array]] = doubled,
        poison: float | None = None,
    ) -> None:
        self.model = model
        self.poison = poison
        self.passes: list[dict[str, Array]] = []

    def forward(self, inputs: Mapping[str, Array], pixels: frozenset[str]) -> dict[str, Array]:
        self.passes.append(dict(inputs))
        if self.poison is not None and (inputs["x"] == self.poison).any():
            raise ValueError(f"cannot stand {self.poison}")
        return self.model(inputs)


def fake_spec(
    *, dims: tuple[int, ...] = (2,), ragged: bool = False, max_batch_size: int = 32
) -> ModelSpec:
    """Describe `doubled`: FP32 x in, FP32 y out."""
    return ModelSpec(
        name="fake",
        version="1",
        platform="fake",
        max_batch_size=max_batch_size,
        inputs=(TensorSpec(name="x", datatype="FP32", dims=dims, ragged=ragged),),
        outputs=(TensorSpec(name="y", datatype="FP32", dims=dims),),
    )


def claimed(request_id: str, x: Array, *, outputs: tuple[str, ...] = (), rows: int = 0) -> Claimed:
    """Return one request for `x` as a worker holds it."""
    count = rows or len(x)
    body = InferRequest(request_id, count, (Tensor.of("x", x),), outputs).encode()
    return Claimed(request_id, count, 1, 0.0, body)


def answered(batch: list[Claimed], results: list[bytes]) -> EncodedResults:
    """Return answers that were made in one pass, which took no time."""
    passes = [Pass(batch, sum(item.rows for item in batch), 0.0, 0.0, 0.0)] if batch else []
    return EncodedResults(results, encode_costs(batch, passes, 0.0))
