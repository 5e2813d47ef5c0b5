"""When memory is short a batch is run in pieces, and every client still gets its own rows."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_backend import FakeBackend, claimed, doubled, fake_spec
from ferry_processes import running_worker
from scripted_models import add_model
from waiting import wait_until
from worker_processes import Served, numbers, seen

from shared.datatypes import Array
from shared.errors import BadModelOutput, ModelFailed
from shared.messages import InferResult
from shared.request_queue.claimed import Claimed
from shared.settings import Settings
from worker.instance import out_of_memory as memory
from worker.instance.batch import answer_batch
from worker.instance.out_of_memory import PiecewiseBackend
from worker.meter import Meter

MODEL = fake_spec()
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
ARENA = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer"
)
CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"
HANDLES = (
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "cusolver error: CUSOLVER_STATUS_NOT_INITIALIZED, when calling `cusolverDnCreate(handle)`",
)
"""The words of CUDA's libraries where there is no memory for what they begin with."""
WAYS = [FULL, MemoryError("Unable to allocate 2 GiB"), RuntimeError(ARENA), RuntimeError(CPU)]
WAYS += [RuntimeError(text) for text in HANDLES]


class Instance:
    """A model behind the pieces as in a worker: its passes, its meter, its answers."""

    def __init__(self, model: Callable[[Mapping[str, Array]], dict[str, Array]]) -> None:
        self.backend = FakeBackend(model)
        self.meter = Meter()
        self.pieces = PiecewiseBackend(self.backend, MODEL, self.meter)

    def answer(self, batch: list[Claimed]) -> dict[str, InferResult]:
        answers = answer_batch(batch, MODEL, self.pieces, "i").results
        return {each.id: InferResult.decode(it) for each, it in zip(batch, answers, strict=True)}

    def passes(self) -> list[int]:
        """Return the rows of each pass since the last call."""
        rows = [len(inputs["x"]) for inputs in self.backend.passes]
        self.backend.passes.clear()
        return rows


def fitting(
    rows: int, error: Exception = FULL
) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    """Return a model for which memory holds so many rows."""

    def model(inputs: Mapping[str, Array]) -> dict[str, Array]:
        if len(inputs["x"]) > rows:
            raise error
        return doubled(inputs)

    return model


def x(rows: int, first: float = 0.0) -> Array:
    return np.arange(first, first + 2 * rows, dtype=np.float32).reshape(rows, 2)


def singles(count: int) -> list[Claimed]:
    return [claimed(str(i), x(1, i)) for i in range(count)]


def assert_right(batch: list[Claimed], results: dict[str, InferResult]) -> None:
    """Fail unless every request got twice its own rows."""
    for item in batch:
        result = results[item.id]
        assert result.error is None, result.error
        given = item.request().inputs[0].array()
        assert result.outputs[0].array().tolist() == (2 * given).tolist()


@pytest.mark.parametrize("error", WAYS, ids=lambda error: f"{type(error).__name__}: {error}"[:40])
def test_a_batch_that_does_not_fit_is_run_in_halves_until_its_pieces_do(error: Exception) -> None:
    instance = Instance(fitting(8, error))
    batch = singles(32)

    results = instance.answer(batch)

    assert_right(batch, results)
    assert instance.passes() == [32, 16, 8, 8, 16, 8, 8]
    assert instance.meter.row_limit == 8


def test_one_clients_large_batch_is_split_between_its_rows() -> None:
    instance = Instance(fitting(8))
    batch = [claimed("small", x(1, 7)), claimed("large", x(20))]

    results = instance.answer(batch)

    assert_right(batch, results)
    assert instance.passes() == [21, 10, 5, 5, 11, 5, 6]
    assert results["large"].timings.batch_size == 21


def in_place(rows: int) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    """Return a model that doubles where its input stands, and answers in a buffer of its own.

    As torch and operators' code do: into their own copy of what they may not write into.
    """
    buffer = np.zeros((32, 2), np.float32)

    def model(inputs: Mapping[str, Array]) -> dict[str, Array]:
        array = np.require(inputs["x"], requirements=["C", "W"])
        array *= 2
        if len(array) > rows:
            raise MemoryError("Unable to allocate")
        buffer[: len(array)] = array
        return {"y": buffer[: len(array)]}

    return model


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_pieces_begin_with_what_was_sent_though_the_model_wrote_into_it(rows: int) -> None:
    instance = Instance(in_place(rows))

    for batch in (singles(13), [claimed("a", x(9)), claimed("b", x(11, 3))], singles(32)):
        assert_right(batch, instance.answer(batch))

    assert 0 < instance.meter.row_limit <= rows


def test_later_batches_are_run_at_the_size_that_fitted() -> None:
    instance = Instance(fitting(8))
    instance.answer(singles(32))
    instance.passes()
    batch = [claimed("large", x(20)), claimed("next", x(1))]

    results = instance.answer(batch)

    assert_right(batch, results)
    assert instance.passes() == [8, 8, 5]
    assert instance.meter.row_limit == 8


def test_memory_that_becomes_shorter_still_lowers_the_size() -> None:
    instance = Instance(fitting(8))
    instance.answer(singles(32))
    instance.passes()
    instance.backend.model = fitting(2)
    batch = singles(8)

    assert_right(batch, instance.answer(batch))
    assert instance.passes() == [8, 4, 2, 2, 4, 2, 2]
    assert instance.meter.row_limit == 2


def test_after_a_while_the_full_size_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "FULL_SIZE_AGAIN_SECONDS", 0.0)
    instance = Instance(fitting(8))
    instance.answer(singles(32))
    instance.passes()
    instance.backend.model = doubled

    assert_right(singles(32), instance.answer(singles(32)))
    assert instance.passes() == [32]
    assert instance.meter.row_limit == 0


@pytest.mark.parametrize("culprit", [0, 13, 31])
def test_a_single_row_that_does_not_fit_fails_alone_and_sets_no_limit(culprit: int) -> None:
    def model(inputs: Mapping[str, Array]) -> dict[str, Array]:
        if (inputs["x"][:, 0] == culprit).any():
            raise FULL
        return doubled(inputs)

    instance = Instance(model)
    batch = singles(32)

    results = instance.answer(batch)

    error = results.pop(str(culprit)).error
    assert isinstance(error, ModelFailed)
    assert error.message == f"OutOfMemoryError: {FULL}"
    assert_right([item for item in batch if item.id != str(culprit)], results)
    assert instance.meter.row_limit == 0


def test_one_row_that_fits_only_alone_does_not_shrink_the_batches_after_it() -> None:
    def model(inputs: Mapping[str, Array]) -> dict[str, Array]:
        if len(inputs["x"]) > 1 and (inputs["x"][:, 0] == 0).any():
            raise FULL
        return doubled(inputs)

    instance = Instance(model)
    batch = singles(32)

    assert_right(batch, instance.answer(batch))
    assert instance.meter.row_limit == 16


def test_a_model_that_raises_anything_else_is_not_asked_again_by_rows() -> None:
    backend = FakeBackend(poison=0.0)

    with pytest.raises(ValueError, match="cannot stand"):
        PiecewiseBackend(backend, MODEL, Meter()).forward({"x": x(8)}, frozenset())

    assert len(backend.passes) == 1


def test_pieces_with_wrong_numbers_of_rows_are_nobodys_answer() -> None:
    def model(inputs: Mapping[str, Array]) -> dict[str, Array]:
        if len(inputs["x"]) > 8:
            raise FULL
        surplus = 1 if inputs["x"][0, 0] == 0 else -1
        return {"y": np.resize(inputs["x"], (len(inputs["x"]) + surplus, 2))}

    results = Instance(model).answer(singles(16))

    assert all(isinstance(result.error, BadModelOutput) for result in results.values())


def test_the_memory_of_a_failed_pass_is_free_before_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held: list[weakref.ref[Array]] = []
    emptied: list[bool] = []

    def model(inputs: Mapping[str, Array]) -> dict[str, Array]:
        if len(inputs["x"]) > 8:
            work = np.zeros(8)
            held.append(weakref.ref(work))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return doubled(inputs)

    monkeypatch.setattr(
        torch.cuda, "empty_cache", lambda: emptied.append(all(work() is None for work in held))
    )

    Instance(model).answer(singles(32))

    assert emptied == [True, True, True]


class Greedy(torch.nn.Module):
    """Doubles x; of more than 8 rows with a 2 among them, or of a 1000, it wants all memory."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        largest = x.max().item()
        if (x.numel() > 16 and largest > 1.0) or largest > 999.0:
            return x * 2.0 + torch.empty([1 << 60])[0]
        return x * 2.0


class Whole(torch.nn.Module):
    """Has no batch dimension: its two numbers are no rows, and too large ones never fit."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.numel() > 1 and x.max().item() > 1.0:
            return x * 2.0 + torch.empty([1 << 60])[0]
        return x * 2.0


class Cramped(torch.nn.Module):
    """Doubles up to 8 rows, also when it is warmed up."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.size(0) > 8:
            return x * 2.0 + torch.empty([1 << 60])[0]
        return x * 2.0


@pytest.fixture(scope="module")
def worker(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A real worker with these models."""
    repository = tmp_path_factory.mktemp("models")
    add_model(repository, Greedy(), max_batch_size=32)
    add_model(repository, Whole(), max_batch_size=0)
    add_model(repository, Cramped(), max_batch_size=32)
    settings = Settings(redis_url=redis_url, key_prefix="greedy", heartbeat_seconds=0.3)
    settings = replace(settings, models=str(repository))
    with running_worker(settings):
        yield settings


@pytest.fixture
def greedy(worker: Settings) -> Iterator[Served]:
    with seen(worker, "greedy") as greedy:
        yield greedy


def test_a_worker_answers_what_does_not_fit_at_once_and_reports_what_fits(greedy: Served) -> None:
    (before,) = greedy.ready()

    result = greedy.push(2.0, (32, 2)).wait()

    assert numbers(result).tolist() == [[4.0, 4.0]] * 32
    assert before.row_limit == 0
    wait_until(lambda: greedy.ready()[0].row_limit == 8, 5, "the limit is reported")
    assert greedy.ready()[0].id == before.id
    waiting = [greedy.push(float(value)) for value in range(30)]
    assert [numbers(each.wait())[0, 0] for each in waiting] == [2.0 * value for value in range(30)]


def test_a_worker_answers_a_row_that_never_fits_with_its_own_error(greedy: Served) -> None:
    around = [greedy.push(float(value)) for value in range(10)]
    culprit = greedy.push(1000.0)
    around += [greedy.push(float(value)) for value in range(10, 20)]

    with pytest.raises(ModelFailed, match=r"RuntimeError.*can't allocate memory"):
        culprit.wait()

    assert [numbers(each.wait())[0, 0] for each in around] == [2.0 * value for value in range(20)]


def test_a_model_whose_largest_batch_does_not_fit_is_ready_all_the_same(worker: Settings) -> None:
    with seen(worker, "cramped") as cramped:
        wait_until(lambda: cramped.ready()[0].row_limit == 8, 5, "the limit is reported")

        assert numbers(cramped.push(3.0, (32, 2)).wait()).tolist() == [[6.0, 6.0]] * 32


def test_a_model_without_a_batch_dimension_is_not_split(worker: Settings) -> None:
    with (
        seen(worker, "whole") as whole,
        pytest.raises(ModelFailed, match="can't allocate memory"),
    ):
        whole.push(2.0, (2,)).wait()
