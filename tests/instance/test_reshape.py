"""Tensors whose config says `reshape`: clients see dims, the model its own shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shared.datatypes import Array
from shared.errors import BadModel, BadModelOutput, FerryError
from shared.model_spec import ModelSpec, TensorSpec
from worker.backends.base import RequestTensors
from worker.instance.tensor_adapter import EachTensorAdapter, adapted, backend_spec
from worker.repository.model_config import read_config

CONFIG = """
platform: "pytorch_libtorch" max_batch_size: 8
input [ {{ name: "x" data_type: TYPE_FP32 dims: {dims} reshape {{ shape: {shape} }} }} ]
output [ {{ name: "y" data_type: TYPE_FP32 dims: [3] }} ]
"""


def spec(dims: tuple[int, ...], shape: tuple[int, ...], max_batch_size: int = 8) -> ModelSpec:
    """Describe a model that takes and gives `shape` where clients see `dims`."""
    inside = {"datatype": "FP32", "dims": dims, "reshape": shape}
    return ModelSpec(
        name="m", version="1", platform="python", max_batch_size=max_batch_size,
        inputs=(TensorSpec(name="x", **inside),), outputs=(TensorSpec(name="y", **inside),),
    )  # fmt: skip


class Echo:
    """Answers y = x; keeps the shapes of x."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, inputs: dict[str, Array], pixels: frozenset[str]) -> dict[str, Array]:
        self.shapes.append(inputs["x"].shape)
        return {"y": inputs["x"]}


@pytest.mark.parametrize(
    ("dims", "shape", "given", "seen"),
    [
        ((6,), (2, 3), (5, 6), (5, 2, 3)),
        ((1,), (), (5, 1), (5,)),
        ((-1, 4), (-1, 2, 2), (5, 7, 4), (5, 7, 2, 2)),
        ((2, 4, -1, 6), (8, -1, 1, 6), (1, 2, 4, 3, 6), (1, 8, 3, 1, 6)),
        ((-1, -1), (-1, 1, -1), (1, 2, 3), (1, 2, 1, 3)),
    ],
)
def test_the_model_gets_its_shape_and_clients_get_theirs(
    dims: tuple[int, ...], shape: tuple[int, ...], given: tuple[int, ...], seen: tuple[int, ...]
) -> None:
    backend = Echo()
    x = np.arange(np.prod(given), dtype=np.float32).reshape(given)

    answer = adapted(backend, spec(dims, shape)).forward({"x": x}, frozenset())

    assert backend.shapes == [seen]
    np.testing.assert_array_equal(answer["y"], x)


def test_without_a_batch_dimension_the_whole_tensor_is_reshaped() -> None:
    backend = Echo()

    answer = adapted(backend, spec((1,), (), 0)).forward({"x": np.ones(1, np.float32)}, frozenset())

    assert (backend.shapes, answer["y"].shape) == ([()], (1,))


def test_the_backend_is_loaded_by_the_shapes_in_the_model() -> None:
    inside = backend_spec(spec((6,), (2, 3)))

    assert [tensor.dims for tensor in inside.inputs + inside.outputs] == [(2, 3), (2, 3)]


def test_an_output_of_another_shape_is_the_model_s_mistake() -> None:
    class Wrong(Echo):
        def forward(self, inputs: dict[str, Array], pixels: frozenset[str]) -> dict[str, Array]:
            return {"y": np.ones((1, 3, 2), np.float32)}

    side = adapted(Wrong(), spec((6,), (2, 3)))

    with pytest.raises(BadModelOutput, match=r"'y': shape \[1, 3, 2\], .* declares \[-1, 2, 3\]"):
        side.forward({"x": np.ones((1, 6), np.float32)}, frozenset())


def test_of_requests_answered_one_by_one_only_the_wrong_one_fails() -> None:
    class Each(Echo):
        def answer_each(
            self, requests: list[RequestTensors], pixels: frozenset[str]
        ) -> list[dict[str, Array] | FerryError]:
            wrong = {"y": np.ones((1, 5), np.float32)}
            return [self.forward(dict(requests[0].inputs), pixels), wrong]

    side = adapted(Each(), spec((6,), (2, 3)))
    assert isinstance(side, EachTensorAdapter)
    x = {"x": np.ones((1, 6), np.float32)}

    good, bad = side.answer_each(
        [RequestTensors("a", x, (), {}), RequestTensors("b", x, (), {})], frozenset()
    )

    assert not isinstance(good, FerryError)
    assert good["y"].shape == (1, 6)
    assert isinstance(bad, BadModelOutput)


@pytest.mark.parametrize(
    ("dims", "shape"),
    [
        ("[6]", "[2, 2]"),
        ("[-1, 4]", "[4, -1]"),
        ("[-1]", "[6]"),
        ("[4]", "[]"),
        ("[4]", "[-2, -2]"),
    ],
)
def test_shapes_of_different_size_are_refused(tmp_path: Path, dims: str, shape: str) -> None:
    path = tmp_path / "m" / "config.pbtxt"
    path.parent.mkdir()
    path.write_text(CONFIG.format(dims=dims, shape=shape))

    with pytest.raises(BadModel, match=r"config\.pbtxt: tensor 'x': reshape \["):
        read_config(path, "1")
