"""A request that reaches a version that has just left is answered by the one in its place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from ferry_processes import running_worker
from flask import Flask
from versioned_models import add_model

from api.app import create_app
from api.infer.question import Question
from api.infer.queues import MAX_SUCCESSORS, Queues
from shared.errors import UnknownModel, VersionRetired
from shared.messages import InferResult, Tensor
from shared.model_spec import ModelSpec
from shared.registry.desired_store import DesiredStore
from shared.registry.snapshot import Snapshot
from shared.request_queue.api_end import PendingRequest
from shared.request_queue.async_requests import new_id
from shared.settings import Settings
from shared.wire.client import connect

X = Tensor.of("x", np.array([[1, 10]], np.float32))


@pytest.fixture(scope="module")
def app(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    """An API over `m`, whose version 2 serves, and where version 1 was, closed."""
    repository = tmp_path_factory.mktemp("models")
    add_model(repository, "m", 2)
    settings = Settings(redis_url=redis_url, key_prefix="retired", models=str(repository))
    with connect(redis_url) as redis:
        assert DesiredStore(redis, "retired").close("m/1", 1, [])
    with running_worker(settings):
        yield create_app(settings)


@pytest.fixture
def queues(app: Flask) -> Queues:
    found: Queues = app.extensions["ferry"].queues
    return found


@pytest.fixture
def left(app: Flask) -> ModelSpec:
    """Version 1 as an API process that does not know yet still sees it."""
    spec: ModelSpec = app.extensions["ferry"].catalog.serving("m")
    return spec.model_copy(update={"version": "1"})


def test_its_successor_answers(queues: Queues, left: ModelSpec) -> None:
    answered = queues.ask(Question(left, (X,)))

    assert answered.spec.version == "2"
    assert answered.result.outputs[0].array().tolist() == [[2, 20]]


def test_its_successor_answers_later(queues: Queues, left: ModelSpec) -> None:
    assert queues.submit(new_id(), Question(left, (X,))).spec.version == "2"


def test_its_successor_answers_a_request_that_comes_again(
    app: Flask, left: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that it came to first died before it pushed."""
    answers, question = app.extensions["ferry"].async_answers, Question(left, (X,))
    with monkeypatch.context() as dying:
        dying.setattr(answers, "_submit_first", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            answers.once("key", "/", question, wait=True)

    answered = answers.once("key", "/", question, wait=True)

    assert answered.status == 200
    assert json.loads(answered.body)["model_version"] == "2"


def test_nobody_else_answers_for_a_version_that_was_named(queues: Queues, left: ModelSpec) -> None:
    with pytest.raises(UnknownModel, match="version 1"):
        queues.ask(Question(left, (X,), named=True))


def test_a_successor_with_other_inputs_is_not_asked(queues: Queues, left: ModelSpec) -> None:
    wider = left.inputs[0].model_copy(update={"dims": (3,)})
    other = left.model_copy(update={"inputs": (wider,)})

    with pytest.raises(VersionRetired):
        queues.ask(Question(other, (X,)))


def test_the_last_attempt_too_is_copied_to_the_shadow(
    queues: Queues, left: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_to_fail, wait, copied = [VersionRetired.default()] * MAX_SUCCESSORS, queues.wait, []

    def wait_or_fail(spec: ModelSpec, pending: PendingRequest) -> InferResult:
        result = wait(spec, pending)
        if left_to_fail:
            raise left_to_fail.pop()
        return result

    monkeypatch.setattr(queues, "wait", wait_or_fail)
    monkeypatch.setattr(queues, "copy_to_shadow", lambda asked, _: copied.append(asked.spec.key))

    queues.ask(Question(left.model_copy(update={"version": "2"}), (X,)))

    assert copied == ["m/2"]


def test_nothing_waits_on_a_queue_that_is_closed(
    queues: Queues, left: ModelSpec, redis_url: str
) -> None:
    queues.ask(Question(left, (X,)))

    with connect(redis_url) as redis:
        assert not list(redis.scan_iter(match="retired:{m/1}:queue:*"))


def test_a_version_with_work_does_not_close(settings: Settings) -> None:
    with connect(settings.redis_url) as redis:
        store = DesiredStore(redis, settings.key_prefix)
        keys = f"{settings.key_prefix}:{{m/1}}:"
        for work in ("queue:1", "inflight:someone"):
            redis.rpush(keys + work, "ticket")
            assert not store.close("m/1", 1, ["someone"])
            redis.delete(keys + work)
        assert store.close("m/1", 1, ["someone"])
        assert redis.pttl(keys + "closed") > 0
        store.open("m/1")
        assert not redis.exists(keys + "closed")


def test_a_snapshot_without_anything_is_not_ready() -> None:
    assert not Snapshot().all_ready()
    assert replace(Snapshot(), supervised=True).all_ready()
