"""What a model is run on before it is reported ready."""

from __future__ import annotations

import pytest
from fake_backend import FakeBackend, fake_spec

from shared.model_spec import ImageInput, TensorSpec
from worker.instance.warmup import batch_sizes, warm_up


@pytest.mark.parametrize(
    ("largest", "sizes"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])]
)
def test_batch_sizes_are_the_powers_of_two_and_the_largest(largest: int, sizes: list[int]) -> None:
    assert batch_sizes(largest) == sizes


def test_every_batch_size_is_run_once() -> None:
    backend = FakeBackend()

    warm_up(fake_spec(dims=(3, 5), max_batch_size=6), backend)

    shapes = [inputs["x"].shape for inputs in backend.passes]
    assert shapes == [(1, 3, 5), (2, 3, 5), (4, 3, 5), (6, 3, 5)]
    assert {inputs["x"].dtype.name for inputs in backend.passes} == {"float32"}


def test_dimensions_of_any_size_are_warmed_with_sixteen() -> None:
    backend = FakeBackend()

    warm_up(fake_spec(dims=(-1,), max_batch_size=1), backend)

    assert backend.passes[0]["x"].shape == (1, 16)


def test_a_model_without_a_batch_dimension_is_run_once_on_its_own_shape() -> None:
    backend = FakeBackend()

    warm_up(fake_spec(dims=(2,), max_batch_size=0), backend)

    assert [inputs["x"].shape for inputs in backend.passes] == [(2,)]


def test_a_model_for_pictures_is_warmed_with_pixels() -> None:
    spec = fake_spec(dims=(3, 4, 5), max_batch_size=2).model_copy(
        update={"image": ImageInput(input="x", height=4, width=5)}
    )
    backend = FakeBackend(lambda inputs: {})

    warm_up(spec, backend)

    assert [inputs["x"].shape for inputs in backend.passes] == [(1, 4, 5, 3), (2, 4, 5, 3)]
    assert backend.passes[0]["x"].dtype.name == "uint8"


def test_strings_are_warmed_with_empty_ones() -> None:
    spec = fake_spec(max_batch_size=1).model_copy(
        update={"inputs": (TensorSpec(name="x", datatype="BYTES", dims=(2,)),)}
    )
    backend = FakeBackend(lambda inputs: {})

    warm_up(spec, backend)

    assert backend.passes[0]["x"].tolist() == [[b"", b""]]


def test_what_the_model_raises_is_raised() -> None:
    with pytest.raises(ValueError, match="cannot stand 1"):
        warm_up(fake_spec(), FakeBackend(poison=1.0))
