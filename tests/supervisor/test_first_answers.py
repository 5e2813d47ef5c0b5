"""A version that takes over and fails what clients ask gives the requests back by itself."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import NamedTuple

import pytest
from ferry_processes import environment, running_worker
from flask.testing import FlaskClient
from versioned_models import remove_version
from waiting import wait_until

from api.app import create_app
from ferry.commands.models import use_version
from shared.errors import LoadFailed
from shared.operations.model_control import ModelControl
from shared.registry.registry import Registry
from shared.registry.repository_index import repository_index
from shared.request_queue.model_statistics import Outcomes
from shared.settings import Settings
from shared.wire.client import connect
from worker.supervisor.first_answers import MAX_JUDGED_COUNT, MIN_FAILED_COUNT, is_worse

CONFIG = """
backend: "python" max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [2] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [2] } ]
"""
MODEL = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            if {fails}:
                raise ValueError("it refuses what clients ask")
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", x * {version})]))
        return answers
"""
ONES = "bool((x == 1.0).any())"
"""What clients ask, and no warm-up does."""


class Server(NamedTuple):
    repository: Path
    settings: Settings
    client: FlaskClient
    control: ModelControl
    registry: Registry

    def add(self, name: str, version: int, fails: str = "False") -> None:
        directory = self.repository / name
        (directory / str(version)).mkdir(parents=True)
        (directory / "config.pbtxt").write_text(CONFIG)
        text = MODEL.replace("{fails}", fails).replace("{version}", str(version))
        (directory / str(version) / "model.py").write_text(text)

    def ask(self, name: str, x: float = 1.0) -> tuple[int, str]:
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [x, 3.0]}
        found = self.client.post(f"/v2/models/{name}/infer", json={"inputs": [tensor]})
        body = json.loads(found.data)
        return found.status_code, body.get("model_version", "")

    def ask_until(self, name: str, version: str) -> int:
        """Ask until this version answers; return how many requests failed before."""
        failed: list[int] = []

        def is_answered() -> bool:
            status, by = self.ask(name)
            failed.append(status)
            return by == version

        wait_until(is_answered, 20, f"version {version} answers")
        return len(failed) - 1

    def metrics(self) -> str:
        return self.client.get("/metrics").text

    def reason(self, name: str, version: str) -> str:
        index = repository_index(self.registry.snapshot())
        (found,) = (
            each for each in index if (each["name"], each.get("version")) == (name, version)
        )
        return found["reason"]


@pytest.fixture(scope="module")
def server(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("models")
    settings = Settings(
        redis_url=redis_url, key_prefix="first", models=str(repository),
        model_control_mode="explicit",
    )  # fmt: skip
    with connect(redis_url) as redis, running_worker(settings):
        client = create_app(settings).test_client()
        control = ModelControl(redis, "first", "explicit")
        yield Server(repository, settings, client, control, Registry(redis, "first"))


def replace(server: Server, name: str, fails: str = ONES) -> None:
    """Have version 2, which fails as said, take over from version 1, which was asked."""
    server.add(name, 1)
    server.control.load(name)
    assert server.ask(name) == (200, "1")
    server.add(name, 2, fails)
    server.control.load(name)


def test_requests_go_back_and_everybody_is_told_why(server: Server) -> None:
    replace(server, "bad")

    failed = server.ask_until("bad", "1")

    assert failed >= MIN_FAILED_COUNT
    reason = server.reason("bad", "2")
    assert re.search(r"failed \d+ of its first \d+ requests: they go to version 1 again", reason)
    assert 'ferry_model_taken_back{model="bad",version="2"} 1.0' in server.metrics()
    assert 'ferry_model_load_failure{model="bad"' not in server.metrics()


def test_requests_go_back_to_a_version_whose_directory_is_gone(server: Server) -> None:
    server.add("moved", 1)
    server.control.load("moved")
    server.add("moved", 2, ONES)
    remove_version(server.repository, "moved", 1)
    server.control.load("moved")

    server.ask_until("moved", "1")

    assert "they go to version 1 again" in server.reason("moved", "2")
    server.control.use("moved", "2")
    server.control.use("moved", "1")
    assert server.ask("moved") == (200, "1")


@pytest.mark.parametrize(
    ("new", "old", "expected"),
    [
        ((0, 5), (1000, 0), True), ((0, 4), (1000, 0), False),
        ((19, 5), (1000, 0), True), ((21, 5), (1000, 0), False),
        # Clients that ask nonsense do so of both.
        ((19, 5), (850, 150), False), ((10, 5), (850, 150), True), ((0, 50), (0, 1000), False),
        ((2, 98), (50, 50), False),
        # Of the one before little is known.
        ((19, 5), (19, 0), False), ((4, 5), (0, 0), True), ((4, 5), (5, 5), False),
    ],
)  # fmt: skip
def test_a_version_is_worse_that_fails_much_more_of_its_first_requests(
    new: tuple[int, int], old: tuple[int, int], expected: bool
) -> None:
    assert is_worse(Outcomes(*new), Outcomes(*old)) is expected


def test_a_version_that_fails_some_of_what_clients_ask_gives_all_back(server: Server) -> None:
    """A third of it: rows whose first value is 1."""
    server.add("some", 1)
    server.control.load("some")
    assert {server.ask("some", x) for x in range(1, 31)} == {(200, "1")}
    server.add("some", 2, ONES)
    server.control.load("some")

    found = [server.ask("some", x % 3) for x in range(1, 41)]

    assert (200, "2") in found and (500, "") in found
    by_first = {(200, "1")}
    wait_until(lambda: {server.ask("some", x) for x in (1, 2, 3)} == by_first, 10, "they go back")


def test_a_higher_version_takes_over_from_what_was_taken_back(server: Server) -> None:
    replace(server, "mended")
    server.ask_until("mended", "1")

    server.add("mended", 3)
    server.control.load("mended")

    server.ask_until("mended", "3")


def test_who_names_the_version_has_it_and_is_told_again(server: Server) -> None:
    replace(server, "wished")
    server.ask_until("wished", "1")
    stop = Event()
    asking = Thread(target=lambda: [server.ask("wished") for _ in iter(stop.is_set, True)])
    asking.start()

    with pytest.raises(LoadFailed, match="version 2 of 'wished' is taken back: it took over"):
        use_version(environment(server.settings), "wished", "2")

    stop.set()
    asking.join()
    server.ask_until("wished", "1")


def test_a_version_that_was_taken_back_can_be_tried_out_again(server: Server) -> None:
    """By a split, or as a shadow; when that ends, the version before has all requests."""
    replace(server, "tried")
    server.ask_until("tried", "1")
    only_first, both = {(200, "1")}, {(200, "1"), (200, "2")}

    server.control.split("tried", {"1": 50, "2": 50})
    assert {server.ask("tried", 2.0) for _ in range(40)} == both
    server.control.split("tried", {})
    assert {server.ask("tried", 2.0) for _ in range(20)} == only_first
    server.control.shadow("tried", "2")
    assert {server.ask("tried") for _ in range(20)} == only_first
    server.control.shadow("tried", "")
    assert {server.ask("tried") for _ in range(20)} == only_first
    assert server.reason("tried", "1") == ""


def test_a_version_that_answers_is_left_where_it_is(server: Server) -> None:
    replace(server, "good", "False")

    assert {server.ask("good") for _ in range(MAX_JUDGED_COUNT + 20)} == {(200, "2")}
    assert server.reason("good", "2") == ""


@pytest.fixture(scope="module")
def careful(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose versions get half of the requests for some seconds before they take over."""
    repository = tmp_path_factory.mktemp("models")
    settings = Settings(
        redis_url=redis_url, key_prefix="careful", models=str(repository),
        model_control_mode="explicit", canary_percent=50, canary_seconds=4.0,
    )  # fmt: skip
    with connect(redis_url) as redis, running_worker(settings):
        client = create_app(settings).test_client()
        control = ModelControl(redis, "careful", "explicit")
        yield Server(repository, settings, client, control, Registry(redis, "careful"))


def test_a_canary_gets_a_share_and_then_all(careful: Server) -> None:
    replace(careful, "m", "False")

    assert "canary: takes all requests in" in careful.reason("m", "2")
    assert {careful.ask("m") for _ in range(40)} == {(200, "1"), (200, "2")}
    wait_until(lambda: careful.reason("m", "2") == "", 20, "it takes over")
    assert {careful.ask("m") for _ in range(40)} == {(200, "2")}


def test_a_canary_that_fails_gives_its_share_back(careful: Server) -> None:
    replace(careful, "bad")

    said = 'ferry_model_taken_back{model="bad"'
    wait_until(lambda: careful.ask("bad") and said in careful.metrics(), 20, "it is taken back")
    wait_until(lambda: {careful.ask("bad") for _ in range(20)} == {(200, "1")}, 20, "1 has all")


def test_what_is_named_takes_over_without_a_canary(careful: Server) -> None:
    careful.add("named", 1)
    careful.add("named", 2)
    careful.control.load("named")
    careful.control.use("named", "1")

    assert {careful.ask("named") for _ in range(20)} == {(200, "1")}


def test_clients_that_ask_nonsense_are_no_reason(server: Server) -> None:
    server.add("asked", 1, ONES)
    server.control.load("asked")
    for _ in range(MIN_FAILED_COUNT):
        assert server.ask("asked")[0] == 500
    server.add("asked", 2, ONES)
    server.control.load("asked")

    assert {server.ask("asked")[0] for _ in range(4 * MIN_FAILED_COUNT)} == {500}
    assert server.reason("asked", "2") == ""
