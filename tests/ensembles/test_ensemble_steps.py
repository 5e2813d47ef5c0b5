"""What an ensemble asks its steps with, and what becomes of it: the test answers every step."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hand_driven import HandDriven, chain, hand_driven, model
from tritonclient.grpc import service_pb2 as proto
from waiting import wait_until

from api.infer.options import RequestOptions
from api.infer.question import Question
from api.rpc.inference import InferCalls
from api.rpc.reading import InferMessage
from shared.errors import (
    BadModel,
    BadModelOutput,
    BadRequest,
    ClientLeft,
    FerryError,
    ModelFailed,
    ModelNotReady,
    QueueFull,
    RequestExpired,
)  # fmt: skip
from shared.messages import InferRequest, Tensor
from shared.model_spec import EnsembleStep, ModelSpec, QueuePolicy, TensorSpec
from shared.settings import Settings

FIRST, SECOND = model("first"), model("second")
HELD_SECONDS = 3.0


def error_of(driven: HandDriven, value: float = 1.0) -> FerryError:
    """Ask, and return the error that comes back; no step has been answered."""
    with pytest.raises(FerryError) as caught:
        driven.push(value).wait()
    return caught.value


def test_each_step_gets_what_is_left_of_the_deadline(settings: Settings) -> None:
    with hand_driven(settings, chain("first", "second"), FIRST, SECOND) as driven:
        waiting = driven.push(1.0, seconds=30.0)
        first = driven.claim("first")
        held = time.monotonic() + HELD_SECONDS
        wait_until(lambda: time.monotonic() > held, 10, "the first step takes long")
        driven.answer("first", first)
        second = driven.claim("second")
        driven.answer("second", second)
        waiting.wait()

    # Half of it is for what a machine with much to do takes to hand a step on.
    assert first.deadline == pytest.approx(second.deadline, abs=HELD_SECONDS / 2)
    assert second.deadline - second.claimed_at < 30.0 - HELD_SECONDS / 2


def policy(action: str) -> QueuePolicy:
    return QueuePolicy(timeout_action=action, allow_timeout_override=True)


def test_the_clients_time_out_delays_a_step_whose_policy_says_so(settings: Settings) -> None:
    first = model("first", queue_policies=(policy("DELAY"),))
    with hand_driven(settings, chain("first", "second"), first, SECOND) as driven:
        hasty = driven.push(1.0, queue_timeout_seconds=0.2)
        wait_until(lambda: driven.depth("first") == 1, 10, "it waits")
        patient, over = driven.push(2.0), time.monotonic() + 0.3
        wait_until(lambda: driven.depth("first") == 2 and time.monotonic() > over, 10, "in vain")
        order = []
        for _ in range(2):
            item = driven.claim("first")
            order.append(driven.value(item))
            driven.answer("first", item)
            driven.answer("second", driven.claim("second"))
        assert hasty.wait().outputs and patient.wait().outputs

    assert order == [2.0, 1.0]


def test_the_clients_time_out_rejects_a_step_whose_policy_says_so(settings: Settings) -> None:
    first = model("first", queue_policies=(policy("REJECT"),))
    with hand_driven(settings, chain("first", "second"), first, SECOND) as driven:
        with pytest.raises(RequestExpired, match=r"step 1 \('first'\): Request timeout expired"):
            driven.push(1.0, queue_timeout_seconds=0.2).wait()
        wait_until(lambda: driven.depth("first") == 0, 10, "the step is taken off")


def test_the_clients_time_out_bounds_each_step_without_a_policy(settings: Settings) -> None:
    with hand_driven(settings, chain("first", "second"), FIRST, SECOND) as driven:
        waiting = driven.push(1.0, seconds=50.0, queue_timeout_seconds=5.0)
        left = []
        for name in ("first", "second"):
            item = driven.claim(name)
            left.append(item.deadline - item.claimed_at)
            driven.answer(name, item)
        waiting.wait()

    assert all(4.0 < seconds <= 5.0 for seconds in left)


def test_the_clients_time_out_is_not_the_ensembles_deadline() -> None:
    options = RequestOptions(timeout_seconds=7.0, queue_timeout_seconds=0.5)
    ensemble = chain("first", "second")
    asked = Question(ensemble, (Tensor.of("in", np.zeros((1, 2), np.float32)),), (), options)

    request = asked.request("id", 30.0)

    assert (request.timeout_seconds, request.queue_timeout_seconds) == (7.0, 0.5)
    assert InferRequest.decode("id", 1, request.encode()).queue_timeout_seconds == 0.5
    assert options.deadline_seconds(FIRST, 30.0) == 0.5


def test_the_clients_time_out_reaches_the_steps_of_a_grpc_call_with_a_deadline() -> None:
    served = chain("first", "second")
    pushed: list[Question] = []
    asked = proto.ModelInferRequest(model_name=served.name, raw_input_contents=[bytes(8)])
    asked.inputs.add(name="in", datatype="FP32", shape=[1, 2])
    asked.parameters["timeout"].int64_param = 500_000
    queues = SimpleNamespace(
        timeout_seconds=lambda _: 30.0, push=lambda question, _: pushed.append(question)
    )
    catalog = SimpleNamespace(serving=lambda *_: served, by_current=lambda do: do())

    calls = InferCalls(cast(Any, catalog), cast(Any, queues), cast(Any, None), cast(Any, None))
    calls.push(InferMessage.of(asked), 7.0)

    request = pushed[0].request("id", 30.0)
    assert request.queue_timeout_seconds == 0.5
    assert 0.5 < request.timeout_seconds <= 7.0


def test_a_request_that_expires_in_a_step_says_in_which(settings: Settings) -> None:
    with hand_driven(settings, chain("first", "second"), FIRST, SECOND) as driven:
        waiting = driven.push(1.0, seconds=0.5)
        item = driven.claim("first")
        with pytest.raises(RequestExpired):
            waiting.wait()
        wait_until(lambda: not driven.is_open("first", item), 10, "the step is taken back")
        wait_until(lambda: driven.held() == 0, 10, "the ensemble lets go")


def test_parameters_and_the_api_key_reach_every_step(settings: Settings) -> None:
    with hand_driven(settings, chain("first", "second"), FIRST, SECOND) as driven:
        waiting = driven.push(1.0, parameters={"tone": "soft"}, owner="app")
        seen = []
        for name in ("first", "second"):
            item = driven.claim(name)
            seen.append((dict(item.request().parameters), item.request().owner))
            driven.answer(name, item)
        waiting.wait()

    assert seen == [({"tone": "soft"}, "app")] * 2


@pytest.mark.parametrize(
    ("level", "first", "second"),
    [(1, 1, 1), (4, 4, 3), (6, 2, 3), (2, 2, 2)],
    ids=["highest", "clamped", "ensemble's default is each step's", "carried over"],
)
def test_the_priority_is_carried_over(
    settings: Settings, level: int, first: int, second: int
) -> None:
    models = [
        model("first", priority_levels=9, default_priority_level=2),
        model("second", priority_levels=3, default_priority_level=3),
    ]
    ensemble = chain("first", "second", priority_levels=9, default_priority_level=6)
    with hand_driven(settings, ensemble, *models) as driven:
        waiting = driven.push(1.0, priority=level)
        seen = []
        for name in ("first", "second"):
            item = driven.claim(name)
            seen.append(item.level)
            driven.answer(name, item)
        waiting.wait()

    assert seen == [first, second]


def test_a_step_is_asked_for_the_outputs_that_are_used(settings: Settings) -> None:
    two = (
        TensorSpec(name="y", datatype="FP32", dims=(2,)),
        TensorSpec(name="unused", datatype="FP32", dims=(2,)),
    )
    with hand_driven(
        settings, chain("first", "second"), model("first", outputs=two), SECOND
    ) as driven:
        waiting = driven.push(1.0)
        item = driven.claim("first")
        driven.answer("first", item)
        driven.answer("second", driven.claim("second"))
        waiting.wait()

    assert item.request().outputs == ("y",)


def test_when_the_client_leaves_its_step_is_taken_back(settings: Settings) -> None:
    with hand_driven(settings, chain("first", "second"), FIRST, SECOND) as driven:
        waiting = driven.push(1.0)
        item = driven.claim("first")
        waiting.cancel()

        with pytest.raises(ClientLeft):
            waiting.wait()
        wait_until(lambda: not driven.is_open("first", item), 10, "the step is taken back")
        wait_until(lambda: driven.held() == 0, 10, "the ensemble lets go")
        assert driven.depth("second") == 0


def test_branches_run_at_the_same_time(settings: Settings) -> None:
    with hand_driven(settings, _branches(), FIRST, SECOND) as driven:
        waiting = driven.push(3.0)
        first, second = driven.claim("first"), driven.claim("second")  # none is answered yet
        driven.answer("second", second)
        driven.answer("first", first)
        result = waiting.wait()

    assert {tensor.name: tensor.array()[0, 0] for tensor in result.outputs} == {"a": 6, "b": 6}


def test_the_error_of_one_branch_takes_back_the_other(settings: Settings) -> None:
    with hand_driven(settings, _branches(), FIRST, SECOND) as driven:
        waiting = driven.push(3.0)
        first, second = driven.claim("first"), driven.claim("second")
        driven.refuse("second", second, ModelFailed("it is broken"))

        with pytest.raises(ModelFailed, match=r"step 2 \('second'\): it is broken"):
            waiting.wait()
        wait_until(lambda: not driven.is_open("first", first), 10, "the other branch is taken back")


@pytest.mark.parametrize("error", [ModelFailed("broken"), QueueFull("full"), BadRequest("odd")])
def test_a_step_s_error_keeps_its_kind_and_names_the_step(
    settings: Settings, error: FerryError
) -> None:
    with hand_driven(settings, chain("first", "second"), FIRST, SECOND) as driven:
        waiting = driven.push(1.0)
        driven.answer("first", driven.claim("first"))
        driven.refuse("second", driven.claim("second"), error)
        with pytest.raises(type(error)) as caught:
            waiting.wait()

    assert caught.value.message == f"in ensemble 'chain', step 2 ('second'): {error}"


def test_a_step_whose_model_is_not_there_is_not_ready(settings: Settings) -> None:
    ensemble = chain("first", "second")
    with hand_driven(settings, ensemble, FIRST, register_models=False) as driven:
        error = error_of(driven)

    assert isinstance(error, ModelNotReady)
    assert "step 1 ('first'): Request for unknown model: 'first' is not found" in error.message


CHANGED: dict[str, tuple[ModelSpec, type[FerryError], str]] = {
    "input": (model("first", source="z"), BadModel, "'first' has no input 'x'"),
    "output": (model("first", target="z"), BadModel, "'first' has no output 'y'"),
    "more inputs": (
        model(
            "first",
            inputs=tuple(TensorSpec(name=name, datatype="FP32", dims=(2,)) for name in "xw"),
        ),
        BadModel,
        "input 'w' of 'first' is not there",
    ),
    "datatype": (
        model("first", inputs=(TensorSpec(name="x", datatype="INT64", dims=(2,)),)),
        BadRequest,
        "tensor 'in': datatype FP32, 'x' of 'first' wants INT64",
    ),
    "shape": (
        model("first", inputs=(TensorSpec(name="x", datatype="FP32", dims=(3,)),)),
        BadRequest,
        "tensor 'in': shape [1, 2], 'x' of 'first' wants [-1, 3]",
    ),
}


@pytest.mark.parametrize("change", CHANGED)
def test_a_model_that_was_replaced_by_another_kind_is_seen(settings: Settings, change: str) -> None:
    first, kind, said = CHANGED[change]
    with hand_driven(settings, chain("first", "second"), first, SECOND) as driven:
        error = error_of(driven)

    assert type(error) is kind
    assert error.message == f"in ensemble 'chain', step 1 ('first'): {said}"


@pytest.mark.parametrize(
    ("array", "said"),
    [  # the tensor goes by the ensemble's name for it
        (np.zeros((1, 2), np.int64), "'after_first': datatype INT64, 'x' of 'second' wants FP32"),
        (
            np.zeros((1, 5), np.float32),
            "'after_first': shape [1, 5], 'x' of 'second' wants [-1, 2]",
        ),
        (np.zeros((9, 2), np.float32), "'second' takes at most 8 rows, not 9"),
    ],
    ids=["datatype", "shape", "rows"],
)
def test_what_a_step_must_not_answer_is_that_step_s_fault(
    settings: Settings, array: Any, said: str
) -> None:
    with hand_driven(settings, chain("first", "second"), FIRST, SECOND) as driven:
        waiting = driven.push(1.0)
        driven.answer("first", driven.claim("first"), Tensor.of("y", array))
        with pytest.raises(BadModelOutput) as caught:
            waiting.wait()

    assert said in caught.value.message


def test_an_answer_of_other_rows_than_were_asked_for_is_no_answer(settings: Settings) -> None:
    with hand_driven(settings, chain("first"), FIRST) as driven:
        waiting = driven.push(1.0)
        two_rows = Tensor.of("y", np.zeros((2, 2), np.float32))
        driven.answer("first", driven.claim("first"), two_rows)
        with pytest.raises(BadModelOutput, match="one row for each of the 1 rows"):
            waiting.wait()


def test_a_step_is_asked_again_when_its_version_left_meanwhile(settings: Settings) -> None:
    successor = model("second", version="2")
    with hand_driven(settings, chain("first", "second"), FIRST, SECOND) as driven:
        waiting = driven.push(1.0)  # the ensemble looks up both versions within half a second
        item = driven.claim("first")
        driven.replace(SECOND, successor)
        driven.answer("first", item)
        driven.answer("second", driven.claim("second"))
        result = waiting.wait()

    assert result.outputs[0].array().tolist() == [[4.0, 4.0]]


def test_many_requests_are_under_way_at_once_and_no_more_than_are_claimed(
    settings: Settings,
) -> None:
    with hand_driven(settings, chain("first"), FIRST) as driven:
        everyone = [driven.push(float(number)) for number in range(300)]
        wait_until(lambda: driven.depth("first") == 256, 20, "all rows of the budget are taken")
        assert driven.held() == 256
        assert driven.depth("chain") == 300 - 256
        for _ in everyone:
            driven.answer("first", driven.claim("first"))
        answers = [waiting.wait().outputs[0].array()[0, 0] for waiting in everyone]

    assert answers == [2.0 * number for number in range(300)]


def test_who_is_answered_first_leaves_the_others_in_flight(settings: Settings) -> None:
    with hand_driven(settings, chain("first"), FIRST) as driven:
        slow, quick = driven.push(1.0), driven.push(2.0)
        items = {driven.value(item): item for item in (driven.claim("first") for _ in range(2))}
        driven.answer("first", items[2.0])
        quick.wait()
        wait_until(lambda: driven.held() == 1, 10, "its ticket is gone")
        left = driven.held_ids()
        driven.answer("first", items[1.0])
        slow.wait()

    assert left == [slow.id]


def test_what_is_under_way_at_the_end_goes_back_to_the_queue(settings: Settings) -> None:
    with hand_driven(settings, chain("first"), FIRST) as driven:
        waiting = driven.push(3.0)
        driven.claim("first")
    with hand_driven(settings, chain("first"), FIRST) as driven:
        driven.answer("first", driven.claim("first"))
        result = waiting.wait()

    assert result.timings.attempts == 1
    assert result.outputs[0].array().tolist() == [[6.0, 6.0]]


def test_an_ensemble_that_moves_is_not_taken_for_a_batch_that_hangs(settings: Settings) -> None:
    with hand_driven(settings, chain("first"), FIRST) as driven:
        waiting = driven.push(3.0)
        item = driven.claim("first")
        began = driven.meter.busy_since
        wait_until(lambda: driven.meter.busy_since > began + 0.5, 10, "its clock moves on")
        assert time.monotonic() - driven.meter.busy_since < 1.0
        driven.answer("first", item)
        waiting.wait()
        wait_until(lambda: driven.meter.busy_since == 0.0, 10, "nothing is under way")


def _branches() -> ModelSpec:
    steps = tuple(
        EnsembleStep(model=name, input_map={"x": "in"}, output_map={"y": target})
        for name, target in (("first", "a"), ("second", "b"))
    )
    outputs = tuple(TensorSpec(name=name, datatype="FP32", dims=(2,)) for name in "ab")
    return model("branches", "in", steps=steps, outputs=outputs, platform="ensemble")
