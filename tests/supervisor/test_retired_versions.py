"""A request that reaches a version that has just left is answered by the one in its place."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from ferry_processes import running_worker
from flask import Flask
from tritonclient.grpc import service_pb2 as proto
from versioned_models import add_model
from werkzeug.test import TestResponse

from api.access.shares import KeyShares
from api.app import create_app
from api.rpc.inference import InferCalls
from api.rpc.reading import InferMessage
from shared.errors import VersionRetired
from shared.model_spec import ModelSpec
from shared.registry.catalog import FRESH_SECONDS, MAX_TRIES, Catalog
from shared.registry.desired_store import DesiredStore
from shared.registry.snapshot import Snapshot
from shared.settings import Settings
from shared.wire.client import connect

BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 10]}]}


@pytest.fixture(scope="module")
def app(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    """An API over `m`, whose version 2 serves, and where version 1 was, closed."""
    repository = tmp_path_factory.mktemp("models")
    add_model(repository, "m", 2)
    settings = Settings(redis_url=redis_url, key_prefix="retired", models=str(repository))
    with connect(redis_url) as redis:
        assert DesiredStore(redis, "retired").close("m/1", 1, []) == "closed"
    with running_worker(settings):
        yield create_app(settings)


@pytest.fixture
def left(app: Flask) -> Iterator[ModelSpec]:
    """Version 1, which this API process alone still takes for the one that serves."""
    catalog: Catalog = app.extensions["ferry"].catalog
    snapshot = catalog.snapshot()
    spec = snapshot.models["m"]["2"].model_copy(update={"version": "1"})
    yield be_behind(catalog, spec)
    catalog.refresh()


def be_behind(catalog: Catalog, spec: ModelSpec) -> ModelSpec:
    """Have the next request go by a copy of the registry in which `spec` serves alone."""
    catalog._snapshot = replace(
        catalog.snapshot(), models={"m": {"1": spec}}, served={}, ready=frozenset({spec.key}),
        changes=-1,
    )  # fmt: skip
    catalog._read_at = catalog._ready_at[spec.key] = time.monotonic()
    catalog._next_look = catalog._read_at + FRESH_SECONDS
    return spec


def post(app: Flask, path: str, body: object, **headers: str) -> TestResponse:
    return app.test_client().post(path, json=body, headers=headers)


def infer(app: Flask, **headers: str) -> TestResponse:
    return post(app, "/v2/models/m/infer", BODY, **headers)


@pytest.mark.usefixtures("left")
def test_its_successor_answers(app: Flask) -> None:
    found = infer(app).json

    assert found is not None and found["model_version"] == "2"
    assert found["outputs"][0]["data"] == [2, 20]


@pytest.mark.usefixtures("left")
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/models/m:predict", {"instances": [[1, 10]]}),
        ("/predict/m", {"input_tensor": [[1, 10]]}),
    ],
)
def test_its_successor_answers_on_each_route(app: Flask, path: str, body: object) -> None:
    found = post(app, path, body).json

    assert found is not None and [[2, 20]] in found.values()


@pytest.mark.usefixtures("left")
def test_its_successor_answers_a_grpc_call(app: Flask) -> None:
    services = app.extensions["ferry"]
    calls = InferCalls(
        services.catalog, services.queues, services.guard.admission, KeyShares(2**29, None)
    )
    request, response = proto.ModelInferRequest(model_name="m"), proto.ModelInferResponse()
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    request.raw_input_contents.append(np.float32([1, 10]).tobytes())

    calls.respond(calls.push(InferMessage.of(request), 30.0), response)

    assert response.model_version == "2"
    assert np.frombuffer(response.raw_output_contents[0], np.float32).tolist() == [2, 20]


@pytest.mark.usefixtures("left")
def test_its_successor_answers_later(app: Flask) -> None:
    accepted = infer(app, Prefer="respond-async")
    found = app.test_client().get(f"{accepted.headers['Location']}?timeout=30").json

    assert accepted.status_code == 202
    assert found is not None and found["model_version"] == "2"


def test_its_successor_answers_a_request_that_comes_again(
    app: Flask, left: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that it came to first died before it pushed."""
    services, key = app.extensions["ferry"], {"Idempotency-Key": "key"}
    with monkeypatch.context() as dying:
        dying.setattr(services.async_answers, "_submit_first", lambda *_: 1 / 0)
        assert infer(app, **key).status_code == 500
    be_behind(services.catalog, left)

    found = infer(app, **key)

    assert found.status_code == 200
    assert found.json is not None and found.json["model_version"] == "2"


@pytest.mark.usefixtures("left")
def test_nobody_else_answers_for_a_version_that_was_named(app: Flask) -> None:
    found = post(app, "/v2/models/m/versions/1/infer", BODY)

    assert found.status_code == 404
    assert "version 1" in found.text


def test_what_the_successor_alone_takes_is_no_bad_request(app: Flask, left: ModelSpec) -> None:
    wider = left.inputs[0].model_copy(update={"dims": (3,)})
    be_behind(app.extensions["ferry"].catalog, left.model_copy(update={"inputs": (wider,)}))

    assert infer(app).status_code == 200


def test_a_bad_request_is_one_after_one_more_look(app: Flask, left: ModelSpec) -> None:
    wide = BODY["inputs"][0] | {"shape": [1, 3], "data": [1, 2, 3]}

    found = post(app, "/v2/models/m/infer", {"inputs": [wide]})

    assert found.status_code == 400
    assert "[-1, 2]" in found.text or "[2]" in found.text


@pytest.mark.usefixtures("left")
def test_nothing_waits_on_a_queue_that_is_closed(app: Flask, redis_url: str) -> None:
    infer(app)

    with connect(redis_url) as redis:
        assert not list(redis.scan_iter(match="retired:{m/1}:queue:*"))


def test_a_version_that_is_never_done_leaving_is_not_asked_for_ever(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[float] = []

    def refused() -> None:
        attempts.append(time.monotonic())
        raise VersionRetired.default()

    with pytest.raises(VersionRetired):
        app.extensions["ferry"].catalog.by_current(refused)

    assert len(attempts) == MAX_TRIES


def test_a_version_with_work_does_not_close(settings: Settings) -> None:
    with connect(settings.redis_url) as redis:
        store = DesiredStore(redis, settings.key_prefix)
        keys = f"{settings.key_prefix}:{{m/1}}:"
        for work in ("queue:1", "inflight:someone"):
            redis.rpush(keys + work, "ticket")
            assert store.close("m/1", 1, ["someone"]) == "busy"
            redis.delete(keys + work)
        assert store.close("m/1", 1, ["someone"]) == "closed"
        assert redis.pttl(keys + "closed") > 0
        store.open("m/1")
        assert not redis.exists(keys + "closed")


def test_a_snapshot_without_anything_is_not_ready() -> None:
    assert not Snapshot().all_ready()
    assert replace(Snapshot(), supervised=True).all_ready()
