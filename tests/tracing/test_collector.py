"""Traces of a whole system, as a real collector is sent them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from secrets import token_hex
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from ensemble_models import PlusOne, Twice, add_ensemble, add_small, x_to_y
from ferry_processes import free_port, running_gunicorn, running_worker
from grpc_process import grpc_client, running_grpc, tensor
from otlp_receiver import ReceivedSpan, Receiver, receiving
from tritonclient.utils import InferenceServerException
from waiting import wait_until

from shared.settings import Settings

SERVED = ("queue", "batch", "forward", "publish")
FAST, USUAL = "/v2/models/plus/infer", "/predict/plus"
ROUTES = {FAST: "/v2/models/{model}/infer", USUAL: "/predict/{model}"}


class System:
    """An API of two processes and a worker, whose collector is the test's."""

    def __init__(self, settings: Settings, receiver: Receiver, directory: Path) -> None:
        self.receiver = receiver
        self.directory = directory
        self.settings = settings
        self._url = f"http://127.0.0.1:{settings.port}"

    def ask(
        self, path: str, value: float = 1.0, name: str = "x", **headers: str
    ) -> tuple[int, str]:
        """Ask for a row, in a trace of its own unless headers say other; return status, trace."""
        trace = token_hex(16)
        headers = {"traceparent": f"00-{trace}-{token_hex(8)}-01"} | headers
        tensor = {"name": name, "datatype": "FP32", "shape": [1, 2], "data": [value, value]}
        body = {"inputs": [tensor]} if path.endswith("/infer") else {"input_tensor": [[value] * 2]}
        headers["Content-Type"] = "application/json"
        return self.send(path, json.dumps(body).encode(), headers), trace

    def send(self, path: str, body: bytes | None, headers: dict[str, str]) -> int:
        request = Request(self._url + path, body, headers)
        try:
            with urlopen(request, timeout=60) as answer:
                answer.read()
                return int(answer.status)
        except HTTPError as error:
            with error:
                return error.code

    def refused(self, code: str) -> float:
        """Return how many requests were refused with this code, by whatever process."""
        with urlopen(f"{self._url}/metrics", timeout=60) as answer:
            found = re.search(rf'_refused_total{{reason="{code}"}} (\S+)', answer.read().decode())
        assert found
        return float(found[1])

    def set_traces(self, **settings: object) -> None:
        body = json.dumps(settings).encode()
        assert self.send("/v2/trace/setting", body, {}) == 200


@pytest.fixture(scope="module")
def system(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    directory = tmp_path_factory.mktemp("system")
    models = directory / "models"
    models.mkdir()
    add_small(models, "plus", PlusOne())
    add_small(models, "twice", Twice())
    add_ensemble(models, "both", [x_to_y("twice", "in", "mid"), x_to_y("plus", "mid", "out")])
    with receiving() as receiver, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        settings = Settings(
            redis_url=redis_url, key_prefix="traced", port=free_port(), api_processes=2,
            grpc_port=free_port(), models=str(models), otel_exporter_otlp_endpoint=receiver.url,
        )  # fmt: skip
        with (
            running_worker(settings, log_file=directory / "worker"),
            running_gunicorn(settings, directory / "api"),
            running_grpc(settings, directory / "grpc"),
        ):
            yield System(settings, receiver, directory)


def named(spans: list[ReceivedSpan], name: str) -> ReceivedSpan:
    (found,) = [span for span in spans if span.name == name]
    return found


@pytest.mark.parametrize("path", [FAST, USUAL])
def test_one_trace_leads_from_http_through_queue_and_batch(system: System, path: str) -> None:
    root_name = f"POST {ROUTES[path]}"
    sent_by = token_hex(8)
    trace = token_hex(16)

    status, _ = system.ask(path, traceparent=f"00-{trace}-{sent_by}-01", **{"X-Request-Id": "me"})

    assert status == 200
    spans = system.receiver.trace(trace, root_name, "push", *SERVED)
    root, push, queue, batch, forward, publish = (
        named(spans, name) for name in (root_name, "push", *SERVED)
    )
    assert root.parent == sent_by
    assert (push.parent, queue.parent, batch.parent) == (root.id,) * 3
    assert (forward.parent, publish.parent) == (batch.id,) * 2
    assert batch.links == {root.id}
    assert {span.service for span in spans} == {"ferry-api", "ferry-worker"}
    assert root.about["ferry.model"] == batch.about["ferry.model"] == "plus"
    assert root.about["ferry.request_id"] == "me"
    assert root.about["http.response.status_code"] == 200
    assert root.began <= push.began <= queue.ended == batch.began
    assert batch.began <= forward.began <= forward.ended == publish.began <= publish.ended
    assert not any(span.failed for span in spans)
    assert not system.receiver.faults


@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer"])
def test_one_trace_leads_from_grpc_through_queue_and_batch(system: System, method: str) -> None:
    trace, sent_by = token_hex(16), token_hex(8)
    told = {"traceparent": f"00-{trace}-{sent_by}-01", "x-request-id": "me"}
    answers: SimpleQueue[Any] = SimpleQueue()
    given = [tensor(np.ones((1, 2), np.float32))]

    with grpc_client(system.settings) as client:
        if method == "ModelInfer":
            client.infer("plus", given, headers=told)
        else:
            client.start_stream(lambda result, error: answers.put(error or result), headers=told)
            client.async_stream_infer("plus", given)
            assert answers.get(timeout=30).as_numpy("y").tolist() == [[2.0, 2.0]]
            client.stop_stream()

    root_name = f"inference.GRPCInferenceService/{method}"
    spans = system.receiver.trace(trace, root_name, "push", *SERVED)
    root, batch = named(spans, root_name), named(spans, "batch")
    assert (root.parent, batch.parent, batch.links) == (sent_by, root.id, {root.id})
    assert {span.service for span in spans} == {"ferry-grpc", "ferry-worker"}
    assert (root.about["rpc.grpc.status"], root.about["ferry.request_id"]) == ("OK", "me")


@pytest.mark.parametrize("model", ["plus", "nobody"])
def test_a_grpc_call_that_fails_has_an_error_span_and_is_counted(
    system: System, model: str
) -> None:
    trace = token_hex(16)
    told = {"traceparent": f"00-{trace}-{token_hex(8)}-01"}
    code = {"plus": "bad_request", "nobody": "unknown_model"}[model]
    before = system.refused(code)

    with grpc_client(system.settings) as client, pytest.raises(InferenceServerException):
        client.infer(model, [tensor(np.ones((1, 3), np.float32))], headers=told)

    (span,) = system.receiver.trace(trace, "inference.GRPCInferenceService/ModelInfer")
    assert (span.failed, span.about["error.type"]) == (True, code)
    assert span.about["rpc.grpc.status"] in ("INVALID_ARGUMENT", "NOT_FOUND")
    wait_until(lambda: system.refused(code) == before + 1, 10, "it is counted")


def test_a_batch_is_linked_to_all_its_requests(system: System) -> None:
    def batches() -> list[frozenset[str]]:
        with ThreadPoolExecutor(8) as pool:
            traces = [trace for _, trace in pool.map(lambda _: system.ask(FAST), range(8))]
        root = f"POST {ROUTES[FAST]}"
        found = [system.receiver.trace(trace, root, "push", *SERVED) for trace in traces]
        roots = {named(spans, root).id for spans in found}
        links = [named(spans, "batch").links for spans in found]
        assert frozenset().union(*links) == roots
        return links

    wait_until(lambda: max(map(len, batches())) > 1, 60, "two requests share a batch")


def test_an_ensembles_steps_are_its_children(system: System) -> None:
    status, trace = system.ask("/v2/models/both/infer", name="in")

    assert status == 200
    root = "POST /v2/models/{model}/infer"
    once = (root, "push", "queue", "ensemble")
    spans = system.receiver.trace(trace, *once, *("step", *SERVED) * 2)
    ensemble = named(spans, "ensemble")
    steps = [span for span in spans if span.name == "step"]
    assert ensemble.parent == named(spans, root).id
    assert [step.about["ferry.model"] for step in steps] == ["twice", "plus"]
    assert {step.parent for step in steps} == {ensemble.id}
    batches = [span for span in spans if span.name == "batch"]
    assert [batch.parent for batch in batches] == [step.id for step in steps]


def test_a_request_that_the_model_fails_is_an_error_in_both_processes(system: System) -> None:
    status, trace = system.ask(FAST, 13.0)

    assert status == 500
    root = f"POST {ROUTES[FAST]}"
    spans = system.receiver.trace(trace, root, "push", "queue", "batch", "publish")
    for name in (root, "batch"):
        assert named(spans, name).failed
        assert named(spans, name).about["error.type"] == "model_failed"


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "code"),
    [
        (FAST, b"{", {}, 400, "bad_request"),
        (FAST, b"{", {"Content-Encoding": "br"}, 415, "unsupported_encoding"),
        (FAST, b"{}", {"Host": "elsewhere.example"}, 403, "unknown_host"),
        ("/v2/models/nobody/infer", b"{}", {}, 404, "unknown_model"),
        (USUAL, b"{", {}, 400, "bad_request"),
    ],
)
def test_who_is_refused_has_an_error_span(
    system: System, path: str, body: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    trace = token_hex(16)
    told = {"traceparent": f"00-{trace}-{token_hex(8)}-01", **headers}

    assert system.send(path, body, told) == status

    route = "/predict/{model}" if path == USUAL else "/v2/models/{model}/infer"
    (span,) = system.receiver.trace(trace, f"POST {route}")
    assert span.failed
    assert (span.about["http.response.status_code"], span.about["error.type"]) == (status, code)


def test_trace_settings_switch_it_in_all_processes(system: System) -> None:
    system.set_traces(trace_level=["OFF"])
    try:
        wait_until(lambda: _is_traced(system, 8) == [], 30, "nothing is traced")
        system.set_traces(trace_level=["TIMESTAMPS"], trace_rate="0")
        wait_until(lambda: len(_is_traced(system, 8)) == 8, 30, "what clients record is traced")
    finally:
        system.set_traces(trace_level=None, trace_rate=None)


def _is_traced(system: System, count: int) -> list[str]:
    """Return which of so many traced requests came to the collector, and one behind them all."""
    asked = [system.ask(FAST)[1] for _ in range(count)]
    seen = {span.trace for span in system.receiver.spans if span.name == "queue"}
    return [trace for trace in asked if trace in seen]


def test_a_collector_that_is_away_is_said_once_and_costs_nobody_an_answer(system: System) -> None:
    system.receiver.status = 400
    said = f"{system.receiver.url}/v1/traces takes no spans"
    lines = [system.directory / name for name in ("api", "worker")]
    try:
        wait_until(lambda: system.ask(FAST)[0] == 200 and _count(lines, said) >= 2, 60, said)
        assert {system.ask(FAST)[0] for _ in range(20)} == {200}
    finally:
        system.receiver.status = 200
    back = "takes spans again"

    def is_back() -> bool:
        return system.ask(FAST)[0] == 200 and _count(lines, back) == _count(lines, said)

    wait_until(is_back, 60, back)
    assert _count(lines[:1], said) <= 2, "each of the API's two processes says it once"
    assert _count(lines[1:], said) == 1
    assert _count(lines, "opentelemetry") == 0 < os.path.getsize(lines[0])


def _count(files: list[Path], text: str) -> int:
    return sum(file.read_text(encoding="utf-8").count(text) for file in files)
