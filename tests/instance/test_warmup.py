"""What a model is run on before it is reported ready."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from fake_backend import FakeBackend, doubled, fake_spec

from shared.datatypes import Array
from shared.errors import BadModelOutput
from shared.model_spec import ImageInput, ModelSpec, TensorSpec
from worker.backends.base import Backend
from worker.instance.warmup import MadeUpPasses, WarmUp, batch_sizes, warm_up
from worker.meter import Meter


def zeros(inputs: Mapping[str, Array]) -> dict[str, Array]:
    return {"y": np.zeros((len(inputs["x"]), 2), np.float32)}


def warmed(spec: ModelSpec, backend: Backend) -> WarmUp:
    pixels = frozenset({spec.image.input} if spec.image else ())
    return warm_up(spec, MadeUpPasses(spec, backend, pixels, Meter()))


@pytest.mark.parametrize(
    ("largest", "sizes"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])]
)
def test_batch_sizes_are_the_powers_of_two_and_the_largest(largest: int, sizes: list[int]) -> None:
    assert batch_sizes(largest) == sizes


def test_every_batch_size_is_run_once() -> None:
    backend = FakeBackend()

    warmed(fake_spec(dims=(3, 5), max_batch_size=6), backend)

    shapes = [inputs["x"].shape for inputs in backend.passes]
    assert shapes == [(1, 3, 5), (2, 3, 5), (4, 3, 5), (6, 3, 5)]
    assert {inputs["x"].dtype.name for inputs in backend.passes} == {"float32"}


def test_dimensions_of_any_size_are_warmed_with_sixteen() -> None:
    backend = FakeBackend()

    warmed(fake_spec(dims=(-1,), max_batch_size=1), backend)

    assert backend.passes[0]["x"].shape == (1, 16)


def test_a_model_without_a_batch_dimension_is_run_once_on_its_own_shape() -> None:
    backend = FakeBackend()

    warmed(fake_spec(dims=(2,), max_batch_size=0), backend)

    assert [inputs["x"].shape for inputs in backend.passes] == [(2,)]


def test_a_model_for_pictures_is_warmed_with_pixels() -> None:
    spec = fake_spec(max_batch_size=2).model_copy(
        update={
            "inputs": (TensorSpec(name="x", datatype="FP32", dims=(3, 4, 5)),),
            "image": ImageInput(input="x", height=4, width=5),
        }
    )
    backend = FakeBackend(zeros)

    warmed(spec, backend)

    assert [inputs["x"].shape for inputs in backend.passes] == [(1, 4, 5, 3), (2, 4, 5, 3)]
    assert backend.passes[0]["x"].dtype.name == "uint8"


def strings(count: int = 2) -> ModelSpec:
    return fake_spec(max_batch_size=1).model_copy(
        update={"inputs": (TensorSpec(name="x", datatype="BYTES", dims=(count,)),)}
    )


def test_strings_are_warmed_with_digits() -> None:
    backend = FakeBackend(zeros)

    warmed(strings(), backend)

    assert backend.passes[0]["x"].tolist() == [[b"1", b"1"]]


@pytest.mark.parametrize("wanted", [b"", b"{}"])
def test_strings_that_are_refused_become_others(wanted: bytes) -> None:
    def choosy(inputs: Mapping[str, Array]) -> dict[str, Array]:
        if inputs["x"].ravel()[0] != wanted:
            raise ValueError("no such text")
        return zeros(inputs)

    assert warmed(strings(), FakeBackend(choosy)).cold == ""


SIZED: dict[str, Callable[[int], bool]] = {
    "at least 400": lambda size: size >= 400,
    "even": lambda size: size % 2 == 0,
    "odd": lambda size: size % 2 == 1,
    "a multiple of 32": lambda size: size % 32 == 0,
    "a multiple of 14": lambda size: size % 14 == 0,
    "a multiple of 160": lambda size: size % 160 == 0,
    "one only": lambda size: size == 1,
    "at most 8": lambda size: size <= 8,
    "some seconds of sound": lambda size: size >= 16000,
    "said in the refusal, 77": lambda size: size == 77,
}


@pytest.mark.parametrize("wish", SIZED)
def test_a_free_dimension_gets_a_size_that_the_model_takes(wish: str) -> None:
    def choosy(inputs: Mapping[str, Array]) -> dict[str, Array]:
        if not SIZED[wish](inputs["x"].shape[1]):
            raise ValueError(f"length must be {wish}")
        return doubled(inputs)

    backend = FakeBackend(choosy)

    assert warmed(fake_spec(dims=(-1,), max_batch_size=4), backend).cold == ""
    assert [len(each["x"]) for each in backend.passes][-3:] == [1, 2, 4]


def test_free_dimensions_of_different_size_are_found_in_the_refusals() -> None:
    def choosy(inputs: Mapping[str, Array]) -> dict[str, Array]:
        rows, columns = inputs["x"].shape[1:]
        if columns != 80 or rows < 3:
            raise ValueError(f"got [{rows}, {columns}], expected 80 bands")
        if rows == columns:
            raise ValueError("a square")
        return doubled(inputs)

    assert warmed(fake_spec(dims=(-1, -1), max_batch_size=1), FakeBackend(choosy)).cold == ""


VALUED: dict[str, Callable[[Array], bool]] = {
    "positive": lambda x: bool((x > 0).all()),
    "zero": lambda x: not x.any(),
    "below 1": lambda x: bool((x < 1).all()),
    "rising": lambda x: bool((np.diff(x) > 0).all()),
    "not negative": lambda x: bool((x >= 0).all()),
}


@pytest.mark.parametrize("datatype", ["FP32", "INT64"])
@pytest.mark.parametrize("wish", VALUED)
def test_values_that_are_refused_become_others(wish: str, datatype: str) -> None:
    def choosy(inputs: Mapping[str, Array]) -> dict[str, Array]:
        if not VALUED[wish](inputs["x"]):
            raise IndexError("out of range")
        return zeros(inputs)

    spec = fake_spec().model_copy(
        update={"inputs": (TensorSpec(name="x", datatype=datatype, dims=(4,)),)}
    )

    assert warmed(spec, FakeBackend(choosy)).cold == ""


def test_an_optional_input_is_left_out_when_the_model_cannot_stand_it() -> None:
    def choosy(inputs: Mapping[str, Array]) -> dict[str, Array]:
        if len(inputs) > 1:
            raise ValueError("one of them")
        return zeros(inputs)

    other = TensorSpec(name="other", datatype="FP32", dims=(2,), optional=True)
    spec = fake_spec().model_copy(update={"inputs": (*fake_spec().inputs, other)})

    assert warmed(spec, FakeBackend(choosy)).cold == ""


def test_a_model_that_refuses_everything_is_served_cold_and_asked_for_a_while_only() -> None:
    def refuse(inputs: Mapping[str, Array]) -> dict[str, Array]:
        raise ValueError("Traceback of TorchScript:\n  no \ud800 such thing")

    backend = FakeBackend(refuse)

    found = warmed(fake_spec(dims=(-1, -1), max_batch_size=8), backend)

    assert found == (
        None,
        "what is made up to warm it fails: ValueError: no \\ud800 such thing",
    )
    assert len(backend.passes) < 100
    assert max(each["x"].nbytes for each in backend.passes) <= 64 * 2**20


def test_a_model_of_fixed_rows_is_served_cold_from_the_first_size_that_it_refuses() -> None:
    def fixed(inputs: Mapping[str, Array]) -> dict[str, Array]:
        if len(inputs["x"]) > 1:
            raise ValueError("Got: 2 Expected: 1")
        return doubled(inputs)

    assert warmed(fake_spec(max_batch_size=8), FakeBackend(fixed)).cold == (
        "a batch of 2 made up rows fails: ValueError: Got: 2 Expected: 1"
    )


def test_want_of_memory_ends_the_search() -> None:
    def large(inputs: Mapping[str, Array]) -> dict[str, Array]:
        raise MemoryError("Unable to allocate")

    backend = FakeBackend(large)

    assert warmed(fake_spec(dims=(-1,)), backend).guess is None
    assert len(backend.passes) == 1


def test_an_answer_by_another_contract_is_no_refusal() -> None:
    def broken(inputs: Mapping[str, Array]) -> dict[str, Array]:
        raise BadModelOutput("the model returned 1 tensors, its config declares ['y', 'z']")

    with pytest.raises(BadModelOutput, match="returned 1 tensors"):
        warmed(fake_spec(), FakeBackend(broken))


FREE = fake_spec().model_copy(
    update={"inputs": (TensorSpec(name="x", datatype="FP32", dims=(-1,)),)}
)
BREACHES: dict[str, tuple[Callable[[Mapping[str, Array]], dict[str, Array]], str]] = {
    "another datatype": (
        lambda inputs: {"y": np.zeros((len(inputs["x"]), 2), np.int64)},
        "output 'y': datatype INT64, the config declares FP32",
    ),
    "another size": (
        lambda inputs: {"y": np.zeros((len(inputs["x"]), 3), np.float32)},
        r"output 'y': shape \[1, 3\], the config declares \[-1, 2\]",
    ),
    "another name": (
        lambda inputs: {"z": inputs["x"]},
        "output 'y': the model did not return it",
    ),
    "one row for any batch": (
        lambda inputs: {"y": np.zeros((1, 2), np.float32)},
        r"output 'y': shape \[1, 2\] does not have one row for each of the 2 rows",
    ),
    "only on the third guess": (
        lambda inputs: {"y": np.zeros((1 // (inputs["x"].flat[0] < 1), 2), np.int64)},
        "output 'y': datatype INT64, the config declares FP32",
    ),
}


@pytest.mark.parametrize("spec", [fake_spec(), FREE], ids=["fixed", "free"])
@pytest.mark.parametrize("breach", BREACHES)
def test_a_model_that_breaks_its_contract_whatever_goes_in_is_refused(
    spec: ModelSpec, breach: str
) -> None:
    model, said = BREACHES[breach]

    with pytest.raises(BadModelOutput, match=said):
        warmed(spec, FakeBackend(model))


def test_a_breach_is_not_looked_for_without_end() -> None:
    backend = FakeBackend(lambda inputs: {"y": np.zeros((len(inputs["x"]), 3), np.float32)})

    with pytest.raises(BadModelOutput):
        warmed(FREE, backend)

    assert len(backend.passes) <= 20


def test_an_answer_in_another_shape_may_be_the_fault_of_the_made_up_size() -> None:
    def halved(inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": inputs["x"][:, ::2]}

    def odd(inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": inputs["x"][:, :0:-1]}

    assert warmed(FREE, FakeBackend(halved)).cold == ""
    never = warmed(
        FREE.model_copy(update={"outputs": (TensorSpec(name="y", datatype="FP32", dims=(7,)),)}),
        FakeBackend(odd),
    )
    assert never.cold.startswith("what is made up to warm it fails: output 'y': shape [1, 15]")
