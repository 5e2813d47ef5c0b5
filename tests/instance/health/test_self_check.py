"""An instance tells its own fault from a request's before anybody is answered with it."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from fake_backend import FakeBackend, claimed, doubled, fake_spec

from shared.datatypes import Array
from shared.errors import BadRequest, FerryError, ModelFailed
from shared.messages import InferRequest, InferResult, Tensor
from shared.request_queue.claimed import Claimed
from worker.backends.base import Backend, RequestTensors
from worker.instance.batch import answer_batch
from worker.instance.health.device_probe import DeviceLost, probe_of, sound
from worker.instance.health.self_check import InstanceLost, SelfCheck
from worker.instance.health.token_ids import Vocabulary
from worker.instance.tensor_adapter import TensorAdapter
from worker.job import ANSWERS_NO_MORE, DEVICE_IS_LOST
from worker.meter import MAX_FAILING_BATCHES

MODEL = fake_spec()
POISON = 13.0


class StickyDevice:
    """Doubles, until `POISON` comes: from then on it raises whatever it is asked."""

    def __init__(self) -> None:
        self.is_dead = False
        self.asked = 0

    def device_fault(self) -> str:
        return "gone" if self.is_dead else ""

    def forward(self, inputs: Mapping[str, Array], pixels: frozenset[str]) -> dict[str, Array]:
        self.asked += 1
        if (inputs["x"] < 0).any():
            raise ValueError("negative")
        self.is_dead = self.is_dead or bool((inputs["x"] == POISON).any())
        if self.is_dead:
            raise RuntimeError("a kernel failed")
        return doubled(inputs)


def requests(*values: float) -> list[Claimed]:
    return [claimed(str(i), row(value)) for i, value in enumerate(values)]


def row(value: float) -> Array:
    return np.full((1, 2), value, np.float32)


def errors(batch: list[Claimed], backend: Backend, health: SelfCheck) -> list[str]:
    """Return the code of each request's error, an empty one for those that were answered."""
    results = answer_batch(batch, MODEL, backend, "i", health=health).results
    found = [InferResult.decode(result).error for result in results]
    return [error.code if error else "" for error in found]


def known_good(backend: Backend) -> SelfCheck:
    return SelfCheck(known_good=lambda: backend.forward({"x": row(1)}, frozenset()))


def test_a_device_that_is_lost_answers_nobody_and_suspects_those_that_ran() -> None:
    device = StickyDevice()

    with pytest.raises(InstanceLost, match="gone") as lost:
        errors(requests(1, 2, POISON, 3), device, SelfCheck(device.device_fault))

    assert lost.value.code == DEVICE_IS_LOST
    assert lost.value.suspects == {"0", "1", "2", "3"}
    assert device.asked == 1  # not once more by halves


def test_requests_that_were_answered_before_the_device_was_lost_are_no_suspects() -> None:
    device = StickyDevice()

    with pytest.raises(InstanceLost) as lost:
        errors(requests(1, -1, 2, POISON), device, SelfCheck(device.device_fault))

    assert lost.value.suspects == {"2", "3"}


def test_one_that_says_nothing_is_found_by_a_pass_that_it_answered_before() -> None:
    device = StickyDevice()

    with pytest.raises(InstanceLost, match=r"answered before.*a kernel failed") as lost:
        errors(requests(1, 2, POISON, 3), device, known_good(device))

    assert lost.value.code == ANSWERS_NO_MORE
    assert lost.value.suspects == {"0", "1", "2", "3"}


def test_where_nothing_is_known_the_first_request_that_was_answered_is_run_again() -> None:
    device, health = StickyDevice(), SelfCheck()
    fresh = SelfCheck()

    assert errors(requests(-1, -2), device, health) == ["model_failed"] * 2
    assert errors(requests(1), device, health) == [""]
    with pytest.raises(InstanceLost):
        errors(requests(POISON), device, health)
    assert errors(requests(1), device, fresh) == ["model_failed"]


def test_a_run_of_bad_requests_is_their_own_fault() -> None:
    device = StickyDevice()
    health = SelfCheck(device.device_fault, known_good(device).known_good)

    for _ in range(50):
        assert errors(requests(-1, -2, -3), device, health) == ["model_failed"] * 3
    assert errors(requests(-1, 1), device, health) == ["model_failed", ""]


def test_a_model_is_not_asked_again_when_it_answered_after_what_failed() -> None:
    device = StickyDevice()

    assert errors(requests(-1, 1), device, known_good(device)) == ["model_failed", ""]
    assert device.asked == 3
    assert errors(requests(1, -1), device, known_good(device)) == ["", "model_failed"]
    assert device.asked == 7


def test_want_of_memory_takes_no_instance_out() -> None:
    def full(inputs: Mapping[str, Array]) -> dict[str, Array]:
        raise MemoryError("none left")

    backend = FakeBackend(full)

    assert errors(requests(1), backend, known_good(backend)) == ["model_failed"]


class Each(StickyDevice):
    """Fails requests one by one, and raises nothing."""

    def __init__(self, error: type[FerryError]) -> None:
        super().__init__()
        self.error = error

    def answer_each(
        self, asked: Sequence[RequestTensors], pixels: frozenset[str]
    ) -> list[dict[str, Array] | FerryError]:
        answers: list[dict[str, Array] | FerryError] = []
        for one in asked:
            try:
                answers.append(self.forward(one.inputs, pixels))
            except (RuntimeError, ValueError) as error:
                answers.append(self.error(str(error)))
        return answers


def test_a_model_that_keeps_its_devices_fault_for_itself_is_seen_through() -> None:
    told, silent = Each(ModelFailed), Each(ModelFailed)

    with pytest.raises(InstanceLost) as lost:
        errors(requests(1, POISON, 2), told, SelfCheck(told.device_fault))
    assert lost.value.suspects == {"1", "2"}
    with pytest.raises(InstanceLost):
        errors(requests(POISON, 2), silent, known_good(silent))


class Scaled(Each):
    """Wants a parameter, and is asked without any when it is called by `forward`."""

    has_scale = False

    def forward(self, inputs: Mapping[str, Array], pixels: frozenset[str]) -> dict[str, Array]:
        if not self.has_scale:
            raise ValueError("no scale")
        return super().forward(inputs, pixels)

    def answer_each(
        self, asked: Sequence[RequestTensors], pixels: frozenset[str]
    ) -> list[dict[str, Array] | FerryError]:
        answers = []
        for one in asked:
            self.has_scale = "scale" in one.parameters
            answers += super().answer_each([one], pixels)
        self.has_scale = False
        return answers


def scaled(value: float, **parameters: float) -> list[Claimed]:
    body = InferRequest("s", 1, (Tensor.of("x", row(value)),), (), parameters=parameters).encode()
    return [Claimed("s", 1, 1, 0.0, body)]


def test_a_request_is_run_again_with_its_parameters() -> None:
    model, health = Scaled(ModelFailed), SelfCheck()

    assert errors(scaled(1, scale=2.0), model, health) == [""]
    assert health.known_good is not None
    assert errors(scaled(1), model, health) == ["model_failed"]
    assert errors(scaled(-1, scale=2.0), model, health) == ["model_failed"]
    with pytest.raises(InstanceLost):
        errors(scaled(POISON, scale=2.0), model, health)


class Body(bytes):
    """The garbage collector finds those that are left."""


def test_of_the_requests_that_were_answered_only_the_smallest_is_kept() -> None:
    large = [claimed(str(i), np.ones((rows, 2), np.float32)) for i, rows in enumerate((9, 1, 8))]
    batch = [item._replace(body=Body(item.body)) for item in large]
    smallest, health = len(batch[1].body), SelfCheck()

    assert errors(batch, StickyDevice(), health) == [""] * 3
    del batch
    gc.collect()

    assert health.known_good is not None
    assert [len(each) for each in gc.get_objects() if type(each) is Body] == [smallest]


def test_one_that_is_refused_when_it_is_run_again_proves_nothing() -> None:
    seen = set[bytes]()

    def forgetful(inputs: Mapping[str, Array]) -> dict[str, Array]:
        rows = inputs["x"].tobytes()
        if rows in seen:
            raise ValueError("asked before")
        seen.add(rows)
        return doubled(inputs)

    backend, health = FakeBackend(forgetful), SelfCheck()

    assert errors(requests(1), backend, health) == [""]
    assert errors(requests(1), backend, health) == ["model_failed"]
    assert errors(requests(2), backend, health) == [""]
    assert len(backend.passes) == 4, "it is not asked twice once more"


def test_what_a_model_calls_the_clients_fault_is_nobody_elses() -> None:
    each = Each(BadRequest)

    assert errors(requests(-1), each, known_good(each)) == ["bad_request"]
    assert each.asked == 1
    health = SelfCheck(lambda: "gone")
    for _ in range(MAX_FAILING_BATCHES):
        assert errors(requests(-1), each, health) == ["bad_request"]
    assert not health.meter.is_failing


def test_answers_that_break_the_contract_count_as_the_models_failures() -> None:
    class Short(Each):
        def forward(self, inputs: Mapping[str, Array], pixels: frozenset[str]) -> dict[str, Array]:
            return {}

    health = SelfCheck()

    for _ in range(MAX_FAILING_BATCHES):
        assert errors(requests(1), Short(ModelFailed), health) == ["bad_model_output"]
    assert health.meter.is_failing


def test_batches_that_never_reach_the_model_say_nothing_of_it() -> None:
    device, health = StickyDevice(), SelfCheck(vocabulary=Vocabulary({"x": 50}))
    undecodable = [Claimed("u", 1, 1, 0.0, b"no frame")]

    for _ in range(MAX_FAILING_BATCHES):
        assert errors(requests(-0.5), device, health) == ["model_failed"]
        assert errors(requests(50), device, health) == ["bad_request"]
        assert errors(undecodable, device, health) == ["bad_message"]

    assert health.meter.is_failing


def test_a_context_that_dies_while_loading_is_a_failed_load() -> None:
    device = StickyDevice()
    probe = probe_of(TensorAdapter(device, MODEL), lambda: "the usual one")

    with sound(probe):
        device.forward({"x": row(1)}, frozenset())
    with pytest.raises(ValueError, match="negative"), sound(probe):
        device.forward({"x": row(-1)}, frozenset())
    with pytest.raises(DeviceLost, match="gone"), sound(probe):
        device.forward({"x": row(POISON)}, frozenset())
    with pytest.raises(DeviceLost, match="gone"), sound(probe):
        """Whoever swallowed its error, as a look at the model does."""
