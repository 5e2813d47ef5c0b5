"""X-Request-Id, over HTTP and gRPC: taken or made, echoed, in the lines of API and worker."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import grpc
import numpy as np
import pytest
import torch
from ferry_processes import free_port, running_gunicorn, running_worker
from grpc_process import address, running_grpc
from scripted_models import add_model
from tritonclient.grpc import service_pb2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub
from waiting import wait_until

from api.rpc.door import REQUEST_ID_KEY
from shared.settings import Settings

MADE = re.compile(r"[0-9a-f]{16}")
GIVEN = "order-7:a/b=c@d"


class Picky(torch.nn.Module):
    """Refuses a 13."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x == 13.0).any()):
            raise RuntimeError("unlucky")
        return x


def asked(value: float, model: str = "picky") -> service_pb2.ModelInferRequest:
    return service_pb2.ModelInferRequest(
        model_name=model,
        inputs=[{"name": "x", "datatype": "FP32", "shape": [1, 2]}],
        raw_input_contents=[np.float32([value, 0]).tobytes()],
    )


class System:
    """An API, a gRPC server and a worker that log JSON into files."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        self._grpc_address = address(settings)
        self._url = f"http://127.0.0.1:{settings.port}"
        self._directory = directory

    def ask(
        self, path: str, value: float | None = None, *, known_as: str = "", **headers: str
    ) -> tuple[int, str]:
        """Return the status and the id of the answer."""
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [value, 0.0]}
        body = None if value is None else json.dumps({"inputs": [tensor]}).encode()
        headers |= {"X-Request-Id": known_as} if known_as else {}
        request = Request(self._url + path, body, headers)
        try:
            with urlopen(request, timeout=30) as answer:
                return answer.status, answer.headers["X-Request-Id"]
        except HTTPError as error:
            with error:
                return error.code, error.headers["X-Request-Id"]

    def call(
        self, value: float = 1.0, known_as: str = "", model: str = "picky"
    ) -> tuple[grpc.StatusCode, str]:
        """Return the status and the id of a call of ModelInfer."""
        with self.stub() as stub:
            metadata = [(REQUEST_ID_KEY, known_as)] if known_as else []
            call = stub.ModelInfer.future(asked(value, model), metadata=metadata, timeout=60)
            return call.code(), dict(call.initial_metadata())[REQUEST_ID_KEY]

    @contextmanager
    def stub(self) -> Iterator[GRPCInferenceServiceStub]:
        with grpc.insecure_channel(self._grpc_address) as channel:
            yield GRPCInferenceServiceStub(channel)

    def lines(self, name: str, request_id: str) -> list[dict[str, Any]]:
        text = (self._directory / name).read_text(encoding="utf-8")
        found = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        return [line for line in found if line.get("request_id") == request_id]


@pytest.fixture(scope="module")
def system(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    directory = tmp_path_factory.mktemp("system")
    models = directory / "models"
    models.mkdir()
    add_model(models, Picky())
    settings = Settings(
        redis_url=redis_url, key_prefix="request-ids", models=str(models), port=free_port(),
        grpc_port=free_port(), log_format="json", access_log=True,
    )  # fmt: skip
    with (
        running_worker(settings, log_file=directory / "worker"),
        running_gunicorn(settings, directory / "api"),
        running_grpc(settings, directory / "grpc"),
    ):
        yield System(settings, directory)


FAST, USUAL = "/v2/models/picky/infer", "/predict/picky"


@pytest.mark.parametrize("path", [FAST, "/v2/health/live", "/nowhere"])
def test_an_id_is_echoed_and_one_is_made_where_none_is_given(system: System, path: str) -> None:
    value = 1.0 if path == FAST else None

    assert system.ask(path, value, known_as=GIVEN)[1] == GIVEN
    first, second = system.ask(path, value)[1], system.ask(path, value)[1]
    assert MADE.fullmatch(first)
    assert MADE.fullmatch(second)
    assert first != second


def test_who_is_refused_at_the_door_has_an_id_too(system: System) -> None:
    assert system.ask("/v2", known_as=GIVEN, Host="elsewhere.example") == (403, GIVEN)


@pytest.mark.parametrize("given", ["a b", "x" * 129, 'a"b', "é"])
def test_what_could_be_read_as_something_else_is_no_id(system: System, given: str) -> None:
    for path, value in ((FAST, 1.0), ("/v2/health/live", None)):
        assert MADE.fullmatch(system.ask(path, value, known_as=given)[1])


def test_a_failure_is_found_in_the_workers_log_by_the_clients_id(system: System) -> None:
    assert system.ask(FAST, 13.0, known_as="unlucky-1") == (500, "unlucky-1")

    wait_until(lambda: system.lines("worker", "unlucky-1"), 10, "the worker's line")
    (line,) = system.lines("worker", "unlucky-1")
    assert line["level"] == "WARNING"
    assert "unlucky" in line["message"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line["time"])


@pytest.mark.parametrize(("path", "value"), [(FAST, 1.0), ("/nowhere", None)])
def test_each_request_has_a_line_where_that_is_wanted(
    system: System, path: str, value: float | None
) -> None:
    status, known_as = system.ask(path, value)

    wait_until(lambda: system.lines("api", known_as), 10, "the API's line")
    (line,) = system.lines("api", known_as)
    method = "GET" if value is None else "POST"
    assert (line["client"], line["asked"]) == ("127.0.0.1", f"{method} {path}")
    assert line["status"] == status
    assert 0.0 < line["seconds"] < 30.0
    assert line["logger"] == "ferry.access"
    if path == FAST:
        assert (line["model"], line["version"], line["batch_size"]) == ("picky", "1", 1)
        assert 0.0 < line["compute_seconds"] < line["seconds"]


@pytest.mark.parametrize("path", ["/predict/picky", "/predict/none"])
def test_a_line_says_which_model_was_asked(system: System, path: str) -> None:
    status, known_as = system.ask(path, 1.0)

    wait_until(lambda: system.lines("api", known_as), 10, "the API's line")
    (line,) = system.lines("api", known_as)
    assert (status, line["model"]) == (line["status"], path.rpartition("/")[2])


def test_every_line_is_an_object(system: System) -> None:
    system.ask("/v2/health/live")

    for name in ("api", "grpc", "worker"):
        text = (system._directory / name).read_text(encoding="utf-8")
        assert text
        assert not [line for line in text.splitlines() if not line.startswith("{")]


def test_a_call_is_told_its_id_and_has_a_new_one_where_none_is_given(system: System) -> None:
    assert system.call(known_as=GIVEN) == (grpc.StatusCode.OK, GIVEN)
    assert system.call(known_as=GIVEN, model="none") == (grpc.StatusCode.NOT_FOUND, GIVEN)
    for given in ("", "a b", "x" * 129, 'a"b'):
        assert MADE.fullmatch(system.call(known_as=given)[1])


def test_a_failure_of_a_call_is_found_in_the_workers_log(system: System) -> None:
    assert system.call(13.0, "unlucky-2") == (grpc.StatusCode.INTERNAL, "unlucky-2")

    wait_until(lambda: system.lines("worker", "unlucky-2"), 10, "the worker's line")


def test_a_call_s_line_says_who_asked_what_and_how_long_it_took(system: System) -> None:
    known_as = system.call()[1]

    wait_until(lambda: system.lines("grpc", known_as), 10, "the line")
    (line,) = system.lines("grpc", known_as)
    assert (line["client"], line["asked"], line["status"]) == ("127.0.0.1", "ModelInfer", "OK")
    assert (line["model"], line["version"], line["batch_size"]) == ("picky", "1", 1)
    assert 0.0 < line["compute_seconds"] < line["seconds"] < 30.0


def test_a_refused_call_has_a_line_and_cannot_forge_another(system: System) -> None:
    known_as = system.call(model="none\n{}")[1]

    wait_until(lambda: system.lines("grpc", known_as), 10, "the line")
    (line,) = system.lines("grpc", known_as)
    assert (line["status"], line["model"]) == ("NOT_FOUND", "none\\n{}")
    assert "compute_seconds" not in line


def test_all_requests_of_a_stream_have_its_id_and_a_line_each(system: System) -> None:
    requests = [asked(1.0), asked(13.0), asked(1.0, "none")]
    with system.stub() as stub:
        answers = stub.ModelStreamInfer(iter(requests), metadata=[(REQUEST_ID_KEY, "stream-1")])
        assert dict(answers.initial_metadata())[REQUEST_ID_KEY] == "stream-1"
        assert [each.error_message != "" for each in answers] == [False, True, True]

    wait_until(lambda: len(system.lines("grpc", "stream-1")) == 4, 10, "its own and theirs")
    wait_until(lambda: system.lines("worker", "stream-1"), 10, "the worker's line")
    found = [(line["status"], line.get("model")) for line in system.lines("grpc", "stream-1")]
    assert found == [("OK", "picky"), ("INTERNAL", "picky"), ("NOT_FOUND", "none"), ("OK", None)]


def test_text_lines_have_the_id_at_their_end(settings: Settings, tmp_path: Path) -> None:
    plain = replace(settings, port=free_port(), access_log=True)
    with running_gunicorn(plain, tmp_path / "api"):
        system = System(plain, tmp_path)
        known_as = system.ask("/v2/health/live", known_as="seen")[1]
        log = tmp_path / "api"
        wait_until(lambda: f"[{known_as}]" in log.read_text(), 10, "the line")
        (line,) = [each for each in log.read_text().splitlines() if "[seen]" in each]

    assert re.search(
        r"INFO \d+ ferry.access: 127.0.0.1 GET /v2/health/live 200 0\.\d+ s \[seen\]$", line
    )
