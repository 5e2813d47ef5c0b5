"""A model's form follows its signature, and its example fits every declared shape."""

from __future__ import annotations

from typing import Any

import pytest

from api.pages.signature import example_shape, listed_models, signature
from shared.model_spec import ImageInput, ModelSpec, TensorSpec, TextInput
from shared.registry.snapshot import Snapshot


def spec(*inputs: TensorSpec, max_batch_size: int = 8, **more: Any) -> ModelSpec:
    outputs = (TensorSpec(name="y", datatype="FP32", dims=(2,), labels=("no", "yes")),)
    return ModelSpec(
        name="m", version="1", platform="p", max_batch_size=max_batch_size, inputs=inputs,
        outputs=outputs, **more,
    )  # fmt: skip


def tensor(datatype: str, *dims: int, **more: Any) -> TensorSpec:
    return TensorSpec(**{"name": "x", **more}, datatype=datatype, dims=dims)


@pytest.mark.parametrize(
    ("dims", "max_batch_size", "shape"),
    [
        ((16,), 8, [1, 16]),
        ((-1,), 8, [1, 4]),
        ((3, -1, -1), 4, [1, 3, 32, 32]),
        ((-1, 5), 0, [4, 5]),
        ((), 0, []),
    ],
)
def test_an_example_fits_the_declared_shape(
    dims: tuple[int, ...], max_batch_size: int, shape: list[int]
) -> None:
    one = spec(tensor("INT64", *dims), max_batch_size=max_batch_size)

    assert example_shape(one, one.inputs[0]) == shape


def test_the_form_is_that_of_the_one_input_that_is_needed() -> None:
    image = ImageInput(input="x", height=8, width=8, channels="L")
    text = TextInput(tokenizer="t", max_length=9)
    empty = Snapshot()

    def form(one: ModelSpec) -> str:
        return str(signature(one, empty)["form"])

    assert form(spec(tensor("FP32", 1, 8, 8), image=image)) == "image"
    assert form(spec(tensor("FP32", 1, 8, 8), tensor("FP32", 1, name="z"), image=image)) == "tensor"
    optional = tensor("FP32", 1, name="z", optional=True)
    assert form(spec(tensor("FP32", 1, 8, 8), optional, image=image)) == "image"
    assert form(spec(tensor("INT64", -1), text=text)) == "text"
    assert form(spec(tensor("BYTES", 1))) == "text"
    assert form(spec(tensor("BYTES", 2))) == "tensor"


def test_small_grey_pictures_are_drawn_and_no_others() -> None:
    def drawn(**image: Any) -> bool:
        one = spec(tensor("FP32", 1), image=ImageInput(input="x", **image))
        return bool(signature(one, Snapshot())["picture"]["drawn"])

    assert drawn(height=28, width=28, channels="L")
    assert not drawn(height=28, width=28)
    assert not drawn(height=224, width=224, channels="L")


def test_a_model_that_failed_is_listed_with_its_reason() -> None:
    listed = listed_models(Snapshot(failures={"broken": "no file"}))

    assert listed == [{"name": "broken", "ready": False, "reason": "no file"}]
