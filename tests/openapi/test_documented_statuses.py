"""Every status that /openapi.json promises can be had, and is answered as it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from io import BytesIO
from secrets import token_hex
from typing import Any, NamedTuple

import numpy as np
import pytest
from counting_model import POISON, CountingModel, counting_model, tensor, v2
from flask.testing import FlaskClient
from openapi_document import check_answer, operations
from registered import register, spec
from werkzeug.test import TestResponse

from api.app import create_app
from shared.access.api_key import ApiKey, digest, new_secret
from shared.access.key_store import FileOfKeys, add
from shared.datatypes import Array
from shared.model_spec import ImageInput, TensorSpec
from shared.registry.desired_state import ModelReport, Serving, SupervisorReport, VersionReport
from shared.registry.desired_store import DesiredStore
from shared.registry.registry import Registry
from shared.settings import Settings
from shared.wire.client import connect

LIMIT = 1024
LATER = {"Prefer": "respond-async"}
NO_REQUEST = "0" * 32
KEY_ID, SECRET = new_secret()
LIMITED = ApiKey(id=KEY_ID, name="limited", sha256=digest(SECRET), roles=("infer",), rate="1/h")


class World(NamedTuple):
    """An API over a model that is served, one without Redis, one whose model is still loading.

    And one that offers no jobs, and one that wants a key.
    """

    model: CountingModel
    up: FlaskClient
    away: FlaskClient
    loading: FlaskClient
    off: FlaskClient
    locked: FlaskClient
    settings: Settings


@pytest.fixture(scope="module")
def world(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    inputs = tmp_path_factory.mktemp("inputs")
    (inputs / "rows.csv").write_text("x\n1\n")
    settings = Settings(
        redis_url=redis_url, key_prefix="statuses", max_body_bytes=LIMIT,
        request_timeout_seconds=10, model_control_mode="explicit", job_inputs=str(inputs),
        job_outputs=str(inputs), job_files=str(inputs), job_upload_bytes=LIMIT,
        job_modules="posixpath",
    )  # fmt: skip
    loading = replace(settings, key_prefix="statuses-loading")
    register(loading, spec("fake", TensorSpec(name="x", datatype="FP32", dims=(2,))), ready=False)
    away = replace(settings, redis_url="redis://127.0.0.1:1")
    strings = {
        "name": "strings", "inputs": (TensorSpec(name="x", datatype="BYTES", dims=(1,)),),
    }  # fmt: skip
    with (
        counting_model(settings, config={"name": "fake", "max_batch_size": 1}) as model,
        counting_model(settings, answer=vectors_of, **strings),
    ):
        have_supervisor(settings)
        off = replace(settings, jobs=False)
        locked = replace(settings, keys_file=str(inputs / "keys.json"))
        add(FileOfKeys(inputs / "keys.json"), LIMITED)
        apps = (settings, away, loading, off, locked)
        clients = [create_app(item).test_client() for item in apps]
        yield World(model, *clients, settings)


def vectors_of(inputs: Mapping[str, Array]) -> dict[str, Array]:
    if b"poison" in inputs["x"]:
        raise ValueError("poison")
    return {"y": np.ones((len(inputs["x"]), 2), np.float32)}


def have_supervisor(settings: Settings) -> None:
    """Have a supervisor say that it did whatever may be asked of two models."""
    client = connect(settings.redis_url)
    picture = TensorSpec(name="x", datatype="FP32", dims=(3, 8, 8))
    register(settings, spec("loaded", picture, image=ImageInput(input="x", height=8, width=8)))
    registry = Registry(client, settings.key_prefix)
    registry.beat("somebody", 600.0)
    registry.keep_page("loaded/1", b"<!doctype html><title>a report</title>")
    store = DesiredStore(client, settings.key_prefix)
    ready = {"1": VersionReport(key="loaded/1", state="ready")}
    models = {
        "loaded": ModelReport(generation=2**40, versions=ready),
        "unloaded": ModelReport(generation=2**40),
    }
    store.put_report("somebody", SupervisorReport(mode="explicit", models=models))
    store.serve("loaded", Serving(versions={"1": "loaded/1"}, default="1"), (), store.changes())


class Asking(NamedTuple):
    """Asks one operation: `name` and `request_id` fill its path, the rest is werkzeug's."""

    method: str
    path: str

    def __call__(
        self, client: FlaskClient, name: str = "fake", request_id: str = NO_REQUEST, **more: Any
    ) -> TestResponse:
        values = {"name": name, "request_id": request_id, "version": "1", "verb": "explain"}
        path = self.path.format(**values, job_id=request_id, action="status")
        return client.open(path, method=self.method, **more)


Case = Callable[[World, Asking], TestResponse]
"""Gets the status, given the world and what asks the operation."""


def plain(client: str = "up", **more: Any) -> Case:
    """Ask one of the world's clients, once."""
    return lambda world, ask: ask(getattr(world, client), **more)


class Stalled(BytesIO):
    """A body of which nothing comes until the time-out."""

    def read(self, size: int | None = -1) -> bytes:
        raise TimeoutError


def stalled(world: World, ask: Asking) -> TestResponse:
    return ask(world.up, input_stream=Stalled(b"{}"), content_type="application/json")


def accepted(client: FlaskClient, value: float = 1.0) -> str:
    """Return the id of a request that was accepted with 202."""
    response = client.post("/predict/fake", json=tensor(value), headers=LATER)
    assert response.status_code == 202, response.text
    request_id: str = response.get_json()["id"]
    return request_id


def done(client: FlaskClient, value: float = 1.0) -> str:
    """Return the id of a request that is answered."""
    request_id = accepted(client, value)
    client.get(f"/v2/requests/{request_id}?wait=10")
    return request_id


def waiting(case: Callable[[World, Asking, str], TestResponse]) -> Case:
    """Get the status with a request that waits while another is being computed."""

    def ask_while_closed(world: World, ask: Asking) -> TestResponse:
        world.model.gate.clear()
        try:
            accepted(world.up)
            return case(world, ask, accepted(world.up))
        finally:
            world.model.gate.set()

    return ask_while_closed


def cancelled(world: World, ask: Asking, request_id: str) -> TestResponse:
    world.up.delete(f"/v2/requests/{request_id}")
    return ask(world.up, request_id=request_id)


def expired(body: dict[str, Any]) -> Callable[[World, Asking, str], TestResponse]:
    """Ask for an answer that can only be had once, later, of a request that has no time."""

    def case(world: World, ask: Asking, _: str) -> TestResponse:
        headers = {"Idempotency-Key": token_hex(8), "X-Request-Timeout": "0.00001"}
        return ask(world.up, json=body, headers=LATER | headers)

    return case


def twice_under_one_key(first: dict[str, Any], second: dict[str, Any]) -> Case:
    def case(world: World, ask: Asking) -> TestResponse:
        key = {"Idempotency-Key": token_hex(8)}
        assert ask(world.up, json=first, headers=key).status_code == 200
        return ask(world.up, json=second, headers=key)

    return case


def instances(value: float) -> dict[str, Any]:
    """Return version 1's body that asks for one row of `value`s."""
    return {"instances": [[value, value]]}


def asking(body: Callable[[float], dict[str, Any]]) -> dict[int, Case]:
    """Return the cases of a route that infers."""
    return {
        200: plain(json=body(1.0)),
        202: plain(json=body(1.0), headers=LATER),
        400: plain(data=b"{"),
        404: plain(json=body(1.0), name="nobody"),
        408: stalled,
        413: plain(data=b" " * (LIMIT + 1)),
        410: waiting(expired(body(1.0))),
        415: plain(data=b"{}", headers={"Content-Encoding": "br"}),
        422: twice_under_one_key(body(1.0), body(2.0)),
        500: plain(json=body(POISON)),
        503: plain("away", json=body(1.0)),
    }


def embedding(text: str, model: str = "strings") -> dict[str, Any]:
    """Return the body that asks for the vector of a text."""
    return {"model": model, "input": text}


def without_model(cases: dict[int, Case]) -> dict[int, Case]:
    """Return the cases of a route that names no model: it cannot name an unknown one."""
    return {status: case for status, case in cases.items() if status != 404}


def other_verb(world: World, ask: Asking) -> TestResponse:
    return world.up.post(ask.path.format_map({"name": "fake", "version": "1", "verb": "dance"}))


def about(request_id: Callable[[World], str]) -> Case:
    """Ask about a request of this id."""
    return lambda world, ask: ask(world.up, request_id=request_id(world))


EDGE = {"model": "fake", "to": "ort"}


def submitted(world: World) -> str:
    """Return the id of a job that waits."""
    job_id: str = world.up.post("/jobs/edge", json=EDGE).get_json()["id"]
    return job_id


def cancelled_job(world: World) -> str:
    job_id = submitted(world)
    world.up.delete(f"/jobs/{job_id}")
    return job_id


def finished_job(world: World) -> str:
    """Return the id of a job whose result is there."""
    job_id = cancelled_job(world)
    fields = {"status": "finished", "ferry_result": '{"output": "x"}'}
    connect(world.settings.redis_url).hset(f"rq:job:{job_id}", mapping=fields)
    return job_id


def submitting(body: dict[str, Any]) -> dict[int, Case]:
    """Return the cases of a route that has a job done."""
    return TAKES_JSON | {202: plain(json=body), 501: plain("off")}


def above_its_rate(world: World, ask: Asking) -> TestResponse:
    """Ask twice with a key that may ask once."""
    limited = create_app(world.locked.application.extensions["ferry"].settings).test_client()
    limited.environ_base["HTTP_X_API_KEY"] = SECRET
    case = cases_of(ask.method, ask.path)[200]
    case(world._replace(up=limited), ask)
    return case(world._replace(up=limited), ask)


AT_THE_DOOR = {
    401: plain("locked"),
    403: plain(headers={"Host": "evil.example"}),
    429: above_its_rate,
}
"""What stands before every route."""
KNOWN_MODEL = {200: plain(), 404: plain(name="nobody"), 503: plain("away")}
NOBODYS_JOB = {404: plain(json={"model": "nobody"})}
TAKES_JSON = {
    400: plain(data=b"{"),
    408: stalled,
    413: plain(data=b" " * (LIMIT + 1)),
    415: plain(data=b"{}", headers={"Content-Encoding": "br"}),
    503: plain("away", data=b"{}"),
}
ROUTES: dict[tuple[str, str], dict[int, Case]] = {
    ("GET", "/"): {200: plain()},
    ("GET", "/openapi.json"): {200: plain()},
    ("GET", "/v2"): {200: plain()},
    ("GET", "/v2/health/live"): {200: plain()},
    ("GET", "/v2/health/ready"): {200: plain(), 400: plain("away")},
    ("GET", "/v2/models/{name}"): KNOWN_MODEL,
    ("GET", "/v2/models/{name}/config"): KNOWN_MODEL,
    ("GET", "/v2/models/stats"): {200: plain(), 503: plain("away")},
    ("GET", "/v2/models/{name}/stats"): KNOWN_MODEL,
    ("GET", "/v2/models/{name}/ready"): KNOWN_MODEL | {400: plain("loading")},
    ("POST", "/v2/models/{name}/infer"): asking(v2),
    ("POST", "/predict"): without_model(asking(tensor)),
    ("POST", "/predict/{name}"): asking(tensor),
    ("GET", "/v2/requests/{request_id}"): {
        200: about(lambda world: done(world.up)),
        202: waiting(lambda world, ask, request_id: ask(world.up, request_id=request_id)),
        400: plain(query_string={"wait": "long"}),
        404: plain(),
        410: waiting(cancelled),
        500: about(lambda world: done(world.up, POISON)),
        503: plain("away"),
    },
    ("DELETE", "/v2/requests/{request_id}"): {
        200: waiting(lambda world, ask, request_id: ask(world.up, request_id=request_id)),
        404: plain(),
        409: about(lambda world: done(world.up)),
        410: waiting(cancelled),
        503: plain("away"),
    },
    ("POST", "/v2/repository/index"): TAKES_JSON | {200: plain()},
    ("POST", "/v2/repository/models/{name}/load"): TAKES_JSON | {200: plain(name="loaded")},
    ("POST", "/v2/repository/models/{name}/unload"): TAKES_JSON | {200: plain(name="unloaded")},
    ("GET", "/models/{name}/report"): KNOWN_MODEL | {200: plain(name="loaded")},
    ("POST", "/jobs/predict"): submitting({"model": "fake", "input": "rows.csv"})
    | {404: plain(json={"model": "nobody", "input": "rows.csv"})},
    ("POST", "/jobs/export"): submitting({"model": "x", "original": "posixpath:join"}),
    ("POST", "/jobs/verify"): submitting({"model": "fake"}) | NOBODYS_JOB,
    ("POST", "/jobs/optimise"): submitting({"model": "fake"}) | NOBODYS_JOB,
    ("POST", "/jobs/edge"): submitting(EDGE) | {404: plain(json=EDGE | {"model": "nobody"})},
    ("GET", "/jobs"): {
        200: plain(),
        400: plain(query_string={"limit": "0"}),
        501: plain("off"),
        503: plain("away"),
    },
    ("GET", "/jobs/{job_id}"): {
        200: about(submitted),
        404: plain(),
        501: plain("off"),
        503: plain("away"),
    },
    ("DELETE", "/jobs/{job_id}"): {
        200: about(submitted),
        404: plain(),
        409: about(cancelled_job),
        501: plain("off"),
        503: plain("away"),
    },
    ("GET", "/jobs/{job_id}/result"): {
        200: about(finished_job),
        404: plain(),
        409: about(submitted),
        501: plain("off"),
        503: plain("away"),
    },
    ("GET", "/metrics"): {200: plain(), 503: plain("away")},
    ("GET", "/v2/logging"): {200: plain(), 503: plain("away")},
    ("POST", "/v2/logging"): TAKES_JSON | {200: plain(json={"log_error": True})},
    **{
        (method, path): {501: plain()}
        for method in ("GET", "POST")
        for path in (
            "/v2/systemsharedmemory/{action}",
            "/v2/cudasharedmemory/{action}",
        )
    },
    ("GET", "/v2/trace/setting"): {200: plain(), 503: plain("away")},
    ("POST", "/v2/trace/setting"): TAKES_JSON
    | {200: plain(json={"trace_rate": "7"}), 501: plain(json={"trace_file": "x"})},
    ("GET", "/v2/models/{name}/trace/setting"): KNOWN_MODEL,
    ("POST", "/v2/models/{name}/trace/setting"): TAKES_JSON
    | {
        200: plain(json={"trace_rate": "7"}),
        404: plain(name="nobody", json={}),
        501: plain(json={"trace_file": "x"}),
    },
    ("POST", "/v1/embeddings"): {
        200: plain(json=embedding("a")),
        400: plain(json=embedding("")),
        404: plain(json=embedding("a", "nobody")),
        408: stalled,
        413: plain(data=b" " * (LIMIT + 1)),
        415: plain(data=b"{}", headers={"Content-Encoding": "br"}),
        422: twice_under_one_key(embedding("a"), embedding("b")),
        500: plain(json=embedding("poison")),
        503: plain("away", json=embedding("a")),
    },
    ("GET", "/v1/models"): {200: plain(), 503: plain("away")},
    ("GET", "/v1/models/{name}"): KNOWN_MODEL,
    ("GET", "/v1/models/{name}/versions/{version}"): KNOWN_MODEL,
    ("POST", "/v1/models/{name}:predict"): asking(instances),
    ("POST", "/v1/models/{name}:{verb}"): {501: plain(), 404: other_verb},
}


def promised() -> list[tuple[str, str, int]]:
    return sorted(
        (method, path, int(status))
        for method, path, operation in operations()
        for status in operation["responses"]
    )


def cases_of(method: str, path: str) -> dict[int, Case]:
    """Return a route's cases; one with a version has those of the one without."""
    cases = ROUTES.get((method, path)) or ROUTES[method, path.replace("/versions/{version}", "")]
    return AT_THE_DOOR | cases


@pytest.mark.parametrize(("method", "path", "status"), promised())
def test_a_promised_status_can_be_had(world: World, method: str, path: str, status: int) -> None:
    response = cases_of(method, path)[status](world, Asking(method, path))

    assert response.status_code == status, response.text
    check_answer(method, path, response)


def test_every_case_is_of_a_status_that_is_promised() -> None:
    cases = {(*route, status) for route, cases in ROUTES.items() for status in cases}

    assert cases <= set(promised())


@pytest.mark.parametrize("path", sorted({path for _, path, _ in promised()}))
def test_a_method_that_a_path_lacks_is_answered_with_405(world: World, path: str) -> None:
    response = Asking("PATCH", path)(world.up)

    assert response.status_code == 405
    answer = response.get_json()
    if path == "/v1/embeddings":
        answer = answer["error"]
    assert answer["code"] == "method_not_allowed"
