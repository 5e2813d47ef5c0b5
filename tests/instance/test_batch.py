"""One claimed batch becomes one answer per request, whatever single requests or the model do."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from math import log2

import numpy as np
import pytest
from fake_backend import FakeBackend, claimed, doubled, fake_spec
from hypothesis import given
from hypothesis import strategies as st

from shared.datatypes import Array
from shared.errors import BadMessage, BadModelOutput, FerryError, ModelFailed
from shared.messages import InferResult
from shared.model_spec import ModelSpec, TensorSpec
from shared.request_queue.claimed import Claimed
from worker.backends.base import RequestTensors
from worker.instance import batch_parts
from worker.instance.batch import answer_batch
from worker.instance.passes.costs import Sharing

MODEL = fake_spec()


def answer(
    batch: list[Claimed], backend: FakeBackend, spec: ModelSpec = MODEL
) -> dict[str, InferResult]:
    """Answer `batch` and return the decoded results by request id."""
    results = map(InferResult.decode, answer_batch(batch, spec, backend, "i").results)
    return {item.id: result for item, result in zip(batch, results, strict=True)}


def row(value: float) -> Array:
    return np.full((1, 2), value, np.float32)


def y(result: InferResult) -> list[list[float]]:
    assert result.error is None, result.error
    (output,) = result.outputs
    assert output.name == "y"
    rows: list[list[float]] = output.array().tolist()
    return rows


@given(st.lists(st.integers(1, 4), min_size=1, max_size=8))
def test_every_request_gets_its_own_rows_of_one_pass(row_counts: list[int]) -> None:
    numbers = iter(np.arange(sum(row_counts) * 2, dtype=np.float32).reshape(-1, 2))
    inputs = [np.stack([next(numbers) for _ in range(rows)]) for rows in row_counts]
    backend = FakeBackend()

    results = answer([claimed(str(i), x) for i, x in enumerate(inputs)], backend)

    for i, x in enumerate(inputs):
        assert y(results[str(i)]) == (2 * x).tolist()
        assert results[str(i)].timings.batch_size == sum(row_counts)
    assert len(backend.passes) == 1


def test_an_answer_says_what_it_cost_and_where_it_was_made() -> None:
    item = Claimed("a", 1, 2, 0.25, claimed("a", row(1)).body)

    timings = answer([item], FakeBackend())["a"].timings

    assert (timings.queue_seconds, timings.attempts, timings.instance) == (0.25, 2, "i")
    assert timings.compute_seconds > 0 and timings.batch_wait_seconds > 0


def test_one_request_that_cannot_be_decoded_fails_alone() -> None:
    batch = [claimed(str(i), row(i)) for i in range(4)]
    batch[2] = Claimed("2", 1, 1, 0.0, b"\xc1 no message")

    results = answer(batch, FakeBackend())

    assert isinstance(results["2"].error, BadMessage)
    assert [y(results[i]) for i in "013"] == [(2 * row(i)).tolist() for i in (0, 1, 3)]


def test_one_request_whose_data_do_not_fill_its_shape_fails_alone() -> None:
    good, bad = claimed("good", row(1)), claimed("bad", row(2))
    bad = Claimed("bad", 1, 1, 0.0, bad.body.replace(row(2).tobytes(), b"\0" * 8)[:-4])

    results = answer([good, bad], FakeBackend())

    assert isinstance(results["bad"].error, BadMessage)
    assert y(results["good"]) == [[2.0, 2.0]]


def test_one_request_that_brings_other_rows_than_it_says_fails_alone() -> None:
    batch = [claimed("a", row(1)), claimed("liar", np.ones((3, 2), np.float32), rows=1)]

    results = answer(batch, FakeBackend())

    assert isinstance(results["liar"].error, BadMessage)
    assert "does not have 1 rows" in results["liar"].error.message
    assert y(results["a"]) == [[2.0, 2.0]]


@pytest.mark.parametrize("culprit", [0, 13, 31])
def test_a_row_on_which_the_model_raises_is_found_and_fails_alone(culprit: int) -> None:
    backend = FakeBackend(poison=float(culprit))

    results = answer([claimed(str(i), row(i)) for i in range(32)], backend)

    error = results.pop(str(culprit)).error
    assert isinstance(error, ModelFailed)
    assert error.message == f"ValueError: cannot stand {float(culprit)}"
    assert all(y(result) == (2 * row(float(i))).tolist() for i, result in results.items())
    assert len(backend.passes) <= 2 * log2(32) + 1


def test_a_batch_above_what_memory_holds_is_answered_in_halves() -> None:
    def eight_rows_fit(inputs: Mapping[str, Array]) -> dict[str, Array]:
        if len(inputs["x"]) > 8:
            raise MemoryError("out of memory")
        return doubled(inputs)

    results = answer([claimed(str(i), row(i)) for i in range(32)], FakeBackend(eight_rows_fit))

    assert all(y(result) == (2 * row(float(i))).tolist() for i, result in results.items())


@pytest.mark.parametrize("surplus", [-1, 1])
def test_a_wrong_number_of_rows_is_an_error_for_all_and_nobody_gets_a_row(surplus: int) -> None:
    def model(inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": np.resize(inputs["x"], (len(inputs["x"]) + surplus, 2))}

    results = answer([claimed(str(i), row(i)) for i in range(4)], FakeBackend(model))

    assert len(results) == 4
    for result in results.values():
        assert isinstance(result.error, BadModelOutput)
        assert "each of the 4 rows that went in" in result.error.message
        assert result.outputs == ()


def test_an_output_that_the_model_does_not_return_is_named() -> None:
    backend = FakeBackend(lambda inputs: {"z": inputs["x"]})

    error = answer([claimed("a", row(1))], backend)["a"].error

    assert isinstance(error, BadModelOutput)
    assert error.message == "output 'y': the model did not return it"


def test_an_output_of_another_datatype_than_declared_is_an_error() -> None:
    backend = FakeBackend(lambda inputs: {"y": inputs["x"].astype(np.int64)})

    error = answer([claimed("a", row(1))], backend)["a"].error

    assert isinstance(error, BadModelOutput)
    assert error.message == "output 'y': datatype INT64, the config declares FP32"


def test_texts_of_different_length_share_a_batch_padded_with_zeros() -> None:
    spec = fake_spec(dims=(-1,), ragged=True)
    short, long = np.ones((1, 2), np.float32), np.full((2, 5), 3, np.float32)
    backend = FakeBackend(lambda inputs: {"y": inputs["x"].sum(axis=1, keepdims=True)})

    results = answer([claimed("short", short), claimed("long", long)], backend, spec)

    assert [y(results["short"]), y(results["long"])] == [[[2.0]], [[15.0], [15.0]]]
    (only,) = backend.passes
    assert only["x"].tolist() == [[1, 1, 0, 0, 0], [3, 3, 3, 3, 3], [3, 3, 3, 3, 3]]


def test_a_request_gets_the_outputs_it_asked_for_in_its_order() -> None:
    output = MODEL.outputs[0]
    spec = MODEL.model_copy(update={"outputs": (output, output.model_copy(update={"name": "z"}))})
    backend = FakeBackend(lambda inputs: {"y": inputs["x"], "z": -inputs["x"]})
    batch = [
        claimed("all", row(1)),
        claimed("one", row(2), outputs=("z",)),
        claimed("turned", row(3), outputs=("z", "y")),
    ]

    results = answer(batch, backend, spec)

    names = {key: [output.name for output in result.outputs] for key, result in results.items()}
    assert names == {"all": ["y", "z"], "one": ["z"], "turned": ["z", "y"]}
    assert results["one"].outputs[0].array().tolist() == [[-2.0, -2.0]]


def test_an_output_that_is_not_declared_is_not_answered() -> None:
    backend = FakeBackend(lambda inputs: {"y": inputs["x"], "secret": np.zeros(1, np.float32)})

    results = answer([claimed("a", row(1)), claimed("b", row(2))], backend)

    assert [y(results["a"]), y(results["b"])] == [[[1.0, 1.0]], [[2.0, 2.0]]]


def test_a_model_without_a_batch_dimension_gets_and_gives_whole_tensors() -> None:
    backend = FakeBackend()
    x = np.array([1, 2], np.float32)

    result = answer([claimed("a", x, rows=1)], backend, fake_spec(max_batch_size=0))["a"]

    assert result.outputs[0].array().tolist() == [2.0, 4.0]
    assert backend.passes[0]["x"].shape == (2,)


@pytest.mark.parametrize("culprit", ["a", "b", "c"])
def test_an_answer_too_large_for_redis_is_refused_and_its_neighbours_get_theirs(
    culprit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_parts, "MAX_RESULT_BYTES", 1000)
    rows = {each: 200 if each == culprit else 1 for each in "abc"}
    items = [claimed(each, np.ones((count, 2), np.float32)) for each, count in rows.items()]

    results = answer(items, FakeBackend())

    error = results.pop(culprit).error
    assert isinstance(error, BadModelOutput)
    assert re.fullmatch("the answer has 1[67]\\d\\d bytes, at most 1000 can .*", error.message)
    assert [y(result) for result in results.values()] == [[[2.0, 2.0]]] * 2


def test_the_answers_of_a_batch_together_are_no_more_than_one_command_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batch_parts, "MAX_RESULTS_BYTES", 4000)
    items = [claimed(each, np.ones((200, 2), np.float32)) for each in "abc"]

    results = answer(items, FakeBackend())

    assert isinstance(results["c"].error, BadModelOutput)
    assert "4000 with its batch" in results["c"].error.message
    assert results["a"].error is results["b"].error is None


def test_an_answer_that_is_refused_is_counted_as_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_parts, "MAX_RESULT_BYTES", 1000)
    large = np.ones((200, 2), np.float32)

    for items, sizes in (
        ([claimed("a", large)], [(-1.0, 1.0)]),
        ([claimed("a", large), claimed("b", row(1))], [(201.0, 1.0), (-1.0, 1.0)]),
    ):
        passes, _ = answer_batch(items, MODEL, FakeBackend(), "i").costs
        assert [each[:2] for each in struct.iter_unpack("<8d", passes)] == sizes


class InPlaceEach:
    """Writes into the strings that it is given, one request after the other; refuses "bad"."""

    def forward(self, inputs: Mapping[str, Array], pixels: frozenset[str]) -> dict[str, Array]:
        raise AssertionError("it answers each")

    def answer_each(
        self, requests: Sequence[RequestTensors], pixels: frozenset[str]
    ) -> list[dict[str, Array] | FerryError]:
        answers: list[dict[str, Array] | FerryError] = []
        for request in requests:
            array = np.require(request.inputs["x"], requirements=["C", "W"])
            array += b"!"
            if array[0, 0] == b"bad!":
                raise ValueError("bad")
            answers.append({"y": np.array([[len(array[0, 0])]], np.float32)})
        return answers


def test_strings_are_sent_again_though_the_model_wrote_into_them() -> None:
    strings = TensorSpec(name="x", datatype="BYTES", dims=(1,))
    spec = fake_spec(dims=(1,)).with_changes(inputs=(strings,))
    words = [b"a", b"ccc", b"bad", b"dd"]
    batch = [claimed(word.decode(), np.array([[word]], object)) for word in words]

    results = answer_batch(batch, spec, InPlaceEach(), "i").results

    found = [InferResult.decode(result) for result in results]
    assert [one.error is None for one in found] == [True, True, False, True]
    answers = [one.outputs[0].array().tolist() for one in found if not one.error]
    assert answers == [[[2]], [[4]], [[3]]]


def test_with_one_length_requests_of_another_run_by_themselves() -> None:
    backend, spec = FakeBackend(), fake_spec(dims=(-1,), ragged=True)
    rows = [np.full((1, length), i, np.float32) for i, length in enumerate((2, 3, 2))]
    batch = [claimed(str(i), row) for i, row in enumerate(rows)]

    results = answer_batch(batch, spec, backend, "i", sharing=Sharing(one_length=True)).results

    assert [one["x"].shape for one in backend.passes] == [(2, 2), (1, 3)]
    answers = [InferResult.decode(result).outputs[0].array().tolist() for result in results]
    assert answers == [[[0, 0]], [[2, 2, 2]], [[4, 4]]]
