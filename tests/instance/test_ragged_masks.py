"""Ragged inputs share a batch by padding, and a mask tells the model where."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shared.datatypes import Array
from shared.model_spec import MaskInput, ModelSpec, TensorSpec
from worker.backends.base import RequestTensors
from worker.instance.batch_parts import stack
from worker.instance.tensor_adapter import EachTensorAdapter, TensorAdapter, adapted, backend_spec
from worker.repository.config.tensors import take_masks

TOKENS = TensorSpec(name="tokens", datatype="FP32", dims=(-1, 2), ragged=True)
SEEN = TensorSpec(name="seen", datatype="INT64", dims=(-1,))
OTHER = TensorSpec(name="other", datatype="FP32", dims=(1,), optional=True)
Y = TensorSpec(name="y", datatype="FP32", dims=(1,))
PARAMETER = {"ragged_mask:tokens": "seen"}


def spec(max_batch_size: int = 8) -> ModelSpec:
    inputs, masks = take_masks((SEEN, TOKENS, OTHER), PARAMETER)
    return ModelSpec(
        name="m", version="1", platform="python", max_batch_size=max_batch_size,
        inputs=inputs, outputs=(Y,), masks=masks,
    )  # fmt: skip


class Recorder:
    """Keeps what it is given; answers ones."""

    def __init__(self) -> None:
        self.given: list[dict[str, Array]] = []

    def forward(self, inputs: Any, pixels: frozenset[str]) -> dict[str, Array]:
        self.given.append(dict(inputs))
        return {"y": np.ones((len(inputs["tokens"]), 1), np.float32)}


class EachRecorder(Recorder):
    def answer_each(self, requests: Any, pixels: frozenset[str]) -> list[dict[str, Array]]:
        return [self.forward(request.inputs, pixels) for request in requests]


def tokens(rows: int, length: int) -> dict[str, Array]:
    return {"tokens": np.full((rows, length, 2), 7, np.float32)}


def test_clients_neither_see_nor_send_a_mask() -> None:
    assert [tensor.name for tensor in spec().inputs] == ["tokens", "other"]
    assert spec().masks == (MaskInput(tensor=SEEN, of="tokens", position=0),)


def test_the_model_gets_the_mask_in_its_place_in_the_config() -> None:
    assert backend_spec(spec()).inputs == (SEEN, TOKENS, OTHER)


def test_shorter_rows_are_padded_and_masked() -> None:
    stacked = stack([tokens(2, 1), tokens(1, 3), tokens(1, 2)], spec())

    assert stacked["tokens"].shape == (4, 3, 2)
    assert stacked["tokens"][0].tolist() == [[7, 7], [0, 0], [0, 0]]
    assert stacked["seen"].tolist() == [[1, 0, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]]
    assert stacked["seen"].dtype == np.int64


@pytest.mark.parametrize("count", [1, 2])
def test_rows_of_one_size_are_told_to_be_whole(count: int) -> None:
    backend = Recorder()

    inputs = stack([tokens(2, 3)] * count, spec())
    adapted(backend, spec()).forward(inputs, frozenset())

    assert backend.given[0]["seen"].tolist() == [[1, 1, 1]] * 2 * count


def test_a_model_without_batches_gets_a_mask_of_its_dims() -> None:
    backend = Recorder()

    array = np.zeros((3, 2), np.float32)
    adapted(backend, spec(0)).forward({"tokens": array}, frozenset())

    assert backend.given[0]["seen"].tolist() == [1, 1, 1]


def test_a_model_that_sees_requests_one_by_one_gets_a_mask_for_each() -> None:
    backend = EachRecorder()
    side = adapted(backend, spec())
    assert isinstance(side, EachTensorAdapter)

    side.answer_each(
        [RequestTensors("1", tokens(1, 2), (), {}), RequestTensors("2", tokens(1, 1), (), {})],
        frozenset(),
    )

    assert [given["seen"].tolist() for given in backend.given] == [[[1, 1]], [[1]]]


def test_without_its_input_there_is_no_mask() -> None:
    optional = TOKENS.model_copy(update={"optional": True})
    inputs, masks = take_masks((SEEN, optional, OTHER), PARAMETER)
    model = spec().model_copy(update={"inputs": inputs, "masks": masks})

    other = {"other": np.ones((1, 1), np.float32)}
    taken = TensorAdapter(Recorder(), model).model_inputs(other, frozenset())

    assert list(taken) == ["other"]
    assert backend_spec(model).inputs[0].optional


def test_a_model_with_neither_mask_nor_reshape_is_called_directly() -> None:
    backend = Recorder()
    plain = spec().model_copy(update={"masks": ()})

    assert adapted(backend, plain) is backend


@pytest.mark.parametrize(
    ("key", "name", "message"),
    [
        ("tokens", "none", "ragged_mask:tokens 'none': there is no input 'none'"),
        ("none", "seen", "ragged_mask:none 'seen': there is no input 'none'"),
        ("other", "seen", "input 'other' has no allow_ragged_batch"),
        ("tokens", "text", "a mask is made of numbers, not TYPE_STRING"),
        ("tokens", "fixed", r"dims \[2\] must be the first of \[-1, 2\]"),
        ("tokens", "tokens", r"\['tokens'\] must be different inputs"),
    ],
)
def test_a_mask_that_cannot_be_is_refused(key: str, name: str, message: str) -> None:
    text = TensorSpec(name="text", datatype="BYTES", dims=(-1,))
    fixed = TensorSpec(name="fixed", datatype="FP32", dims=(2,))

    with pytest.raises(ValueError, match=message):
        take_masks((SEEN, TOKENS, OTHER, text, fixed), {f"ragged_mask:{key}": name})


def test_a_mask_must_cover_every_free_dimension() -> None:
    free = TensorSpec(name="free", datatype="FP32", dims=(-1, -1), ragged=True)

    with pytest.raises(ValueError, match=r"dims \[-1\] must be the first of \[-1, -1\]"):
        take_masks((free, SEEN), {"ragged_mask:free": "seen"})
