"""A model that takes padding for a part of a row is found at load, one that does not is let be."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from fake_backend import FakeBackend, fake_spec

from shared.datatypes import Array
from shared.model_spec import MaskInput, ModelSpec, TensorSpec
from worker.instance.determinism import padding_effect
from worker.instance.made_up import made_up, noise
from worker.instance.tensor_adapter import adapted
from worker.instance.warmup import MadeUpPasses, warm_up
from worker.meter import Meter

Model = Callable[[Mapping[str, Array]], dict[str, Array]]
SUMS = {
    "mean": lambda x: x.mean(1),
    "largest": lambda x: x.max(1),
    "smallest": lambda x: x.min(1),
    "last": lambda x: x[:, -1],
    "length": lambda x: np.full(len(x), x.shape[1], np.int64),
    "where": lambda x: x.argmin(1),
    "each": lambda x: 2 * x,
    "flips": lambda x: x[:, ::-1].cumsum(1)[:, 0],
    "lost": lambda x: x[:, 0] / x[:, -1],
}
FREE = {
    "sum": lambda x: x.sum(1),
    "first": lambda x: x[:, 0],
    "length of what is not 0": lambda x: (x != 0).sum(1),
    "mean of what is not 0": lambda x: x.sum(1) / np.maximum(1, (x != 0).sum(1)),
}


def found(spec: ModelSpec, model: Model) -> str:
    passes = MadeUpPasses(spec, adapted(FakeBackend(model), spec), frozenset(), Meter())
    guess = warm_up(spec, passes).guess
    assert guess is not None
    makes = [lambda rows: noise(spec, guess, rows), lambda rows: made_up(spec, guess, rows)]
    return padding_effect(spec, passes, makes)


def ragged(datatype: str = "FP32") -> ModelSpec:
    spec = fake_spec(dims=(-1,), ragged=True, max_batch_size=4)
    x = spec.inputs[0].model_copy(update={"datatype": datatype})
    return spec.model_copy(update={"inputs": (x,)})


def reducing(reduce: Callable[[Array], Array]) -> Model:
    def model(inputs: Mapping[str, Array]) -> dict[str, Array]:
        with np.errstate(all="ignore"):
            return {"y": reduce(inputs["x"]).astype(np.float32)}

    return model


@pytest.mark.parametrize("name", SUMS)
def test_a_model_that_sees_the_padding_is_found(name: str) -> None:
    said = found(ragged(), reducing(SUMS[name]))

    assert said.startswith("it answers a row differently beside a longer one")
    assert "requests of different length do not share a batch" in said


@pytest.mark.parametrize("name", FREE)
def test_a_model_that_does_not_is_none(name: str) -> None:
    assert found(ragged(), reducing(FREE[name])) == ""


def test_a_mask_makes_it_none() -> None:
    x = ragged().inputs[0]
    seen = TensorSpec(name="seen", datatype="FP32", dims=(-1,))
    mask = MaskInput(tensor=seen, of="x", position=1)
    spec = ragged().model_copy(update={"inputs": (x,), "masks": (mask,)})

    def mean(inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": (inputs["x"] * inputs["seen"]).sum(1) / inputs["seen"].sum(1)}

    assert found(spec, mean) == ""


def test_what_any_company_changes_is_not_taken_for_padding() -> None:
    """As dynamic quantisation, whose scale is the batch's."""

    def quantised(inputs: Mapping[str, Array]) -> dict[str, Array]:
        scale = np.abs(inputs["x"]).max() / 127
        return {"y": (np.round(inputs["x"] / scale) * scale).sum(1)}

    assert found(ragged(), quantised) == ""


def test_a_model_of_a_largest_length_is_asked_shorter_rows() -> None:
    def short(inputs: Mapping[str, Array]) -> dict[str, Array]:
        if inputs["x"].shape[1] > 16:
            raise ValueError("positions end at 16")
        return {"y": inputs["x"].mean(1)}

    assert "beside a longer one" in found(ragged(), short)


def test_a_model_that_takes_one_length_only_is_let_be() -> None:
    def fixed(inputs: Mapping[str, Array]) -> dict[str, Array]:
        if inputs["x"].shape[1] != 16:
            raise ValueError("16")
        return {"y": inputs["x"].mean(1)}

    assert found(ragged(), fixed) == ""


@pytest.mark.parametrize("update", [{"max_batch_size": 1}, {"max_batch_size": 0}])
def test_what_never_shares_a_batch_is_not_asked(update: dict[str, int]) -> None:
    assert found(ragged().model_copy(update=update), reducing(np.mean)) == ""
