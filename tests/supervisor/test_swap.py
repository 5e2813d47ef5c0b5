"""Versions replaced under load: nothing fails, and every answer is from the version it names."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from ferry_processes import free_port, running_gunicorn, running_worker
from versioned_models import add_broken, add_model, add_version, remove_version, write_model
from waiting import wait_until

from shared.errors import LoadFailed
from shared.operations.model_control import ModelControl
from shared.settings import Settings
from shared.wire.client import connect

CLIENTS = 32
SWAPS = 5
Answer = tuple[int, str, float]


class Load:
    """Clients that ask without a pause; `answers` are (status, version, factor)."""

    def __init__(self, port: int, model: str, clients: int = CLIENTS) -> None:
        self._port = port
        self._path = f"/v2/models/{model}/infer"
        self._stop = Event()
        self.answers: list[Answer] = []
        self.wrong: list[str] = []
        self._threads = [Thread(target=self._ask, args=(n,)) for n in range(clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self, number: int) -> None:
        values = random.Random(number)
        connection = HTTPConnection("127.0.0.1", self._port, timeout=60)
        while not self._stop.is_set():
            x = float(values.randint(1, 1000))
            body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [x, -x]}]}
            connection.request("POST", self._path, json.dumps(body))
            response = connection.getresponse()
            self._note(response.status, response.read(), x)
        connection.close()

    def _note(self, status: int, raw: bytes, x: float) -> None:
        if status != 200:
            self.wrong.append(f"{status} {raw.decode()}")
            return
        found: Any = json.loads(raw)
        first, second = found["outputs"][0]["data"]
        if second != -first:
            self.wrong.append(f"mixed answer {found}")
        self.answers.append((status, found["model_version"], first / x))

    def wait_until_all_are(self, wanted: tuple[str, float], count: int = 64) -> None:
        """Return once the last `count` answers are all from this version and factor.

        API processes look for a change every tenth of a second.
        """
        wait_until(
            lambda: (
                {found[1:] for found in self.answers[-count:]} == {wanted}
                and len(self.answers) > count
            ),
            10,
            f"all answers are {wanted}",
        )

    def finish(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@dataclass(frozen=True)
class Server:
    """A worker and an API over `repository`: the API's port, and control of the models."""

    repository: Path
    port: int
    control: ModelControl

    def serve(self, name: str, version: int = 1) -> Path:
        """Load a model of a test's own; return its directory."""
        directory = add_model(self.repository, name, version)
        self.control.load(name)
        return directory

    @contextmanager
    def asked(self, name: str, clients: int = CLIENTS) -> Iterator[Load]:
        """Have clients ask a model for as long as the block."""
        load = Load(self.port, name, clients)
        try:
            wait_until(lambda: len(load.answers) > clients, 30, "the clients are answered")
            yield load
        finally:
            load.finish()


@pytest.fixture(scope="module")
def server(
    request: pytest.FixtureRequest, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server whose retired versions stand by for so many seconds."""
    repository = tmp_path_factory.mktemp("models")
    add_model(repository, "there", 1)
    settings = Settings(
        redis_url=redis_url, key_prefix=f"swap-{request.param}", models=str(repository),
        port=free_port(), model_control_mode="explicit", load_models="there",
        standby_seconds=request.param,
    )  # fmt: skip
    with connect(settings.redis_url) as redis, running_worker(settings), running_gunicorn(settings):
        control = ModelControl(redis, settings.key_prefix, "explicit")
        yield Server(repository, settings.port, control)


standing_by = pytest.mark.parametrize("server", [60.0], indirect=True)
"""Retired versions stay for a while, as they do by default."""


@pytest.mark.parametrize("server", [60.0, 0.0], indirect=True)
def test_swaps_under_load_lose_and_mix_nothing(server: Server) -> None:
    server.serve("swapped")

    with server.asked("swapped") as load:
        for version in range(2, SWAPS + 2):
            add_version(server.repository, "swapped", version)
            remove_version(server.repository, "swapped", version - 1)
            server.control.load("swapped")
            load.wait_until_all_are((str(version), float(version)))

    assert load.wrong == []
    assert {version for _, version, _ in load.answers} == {str(n) for n in range(1, SWAPS + 2)}
    assert all(factor == float(version) for _, version, factor in load.answers)


@pytest.mark.parametrize("server", [0.0], indirect=True)
def test_content_replaced_within_a_version_mixes_nothing(server: Server) -> None:
    directory = server.serve("replaced")

    with server.asked("replaced") as load:
        for factor in (2.0, 3.0, 1.0):
            write_model(directory / "1" / "model.onnx", factor)
            server.control.load("replaced")
            load.wait_until_all_are(("1", factor))

    assert load.wrong == []


@standing_by
def test_a_broken_version_takes_no_request(server: Server) -> None:
    server.serve("broken")

    with server.asked("broken") as load:
        add_broken(server.repository, "broken", 2)
        with pytest.raises(LoadFailed, match=r"model\.onnx"):
            server.control.load("broken")
        before = len(load.answers)
        wait_until(lambda: len(load.answers) > before + CLIENTS, 30, "answers go on")

    assert load.wrong == []
    assert {version for _, version, _ in load.answers} == {"1"}


@standing_by
def test_a_rollback_brings_the_version_before_back(server: Server) -> None:
    server.serve("rolled")

    with server.asked("rolled") as load:
        add_version(server.repository, "rolled", 2)
        server.control.load("rolled")
        server.control.use("rolled", "1")
        load.wait_until_all_are(("1", 1.0))
        server.control.use("rolled", "")
        load.wait_until_all_are(("2", 2.0))

    assert load.wrong == []


@standing_by
def test_a_split_shares_requests_out_by_its_weights(server: Server) -> None:
    server.serve("split", 2)

    with server.asked("split", 8) as load:
        add_version(server.repository, "split", 3)
        server.control.split("split", {"2": 90, "3": 10})
        before = len(load.answers) + 100
        wait_until(lambda: len(load.answers) > before + 2000, 60, "answers come")
        versions = [version for _, version, _ in load.answers[before:]]
        assert 0.05 < versions.count("3") / len(versions) < 0.15
        server.control.split("split", {})
        load.wait_until_all_are(("2", 2.0), count=300)

    assert load.wrong == []


@pytest.mark.parametrize("server", [0.0], indirect=True)
def test_who_names_a_replaced_version_is_answered_by_it_until_it_leaves(server: Server) -> None:
    """It leaves although clients ask without a pause, and refuses nobody in any other way."""
    server.serve("named")

    with server.asked("named/versions/1", 8) as load:
        add_version(server.repository, "named", 2)
        server.control.load("named")
        before = len(load.answers)
        wait_until(lambda: load.wrong, 30, "it has left")
        assert len(load.answers) > before

    assert all(each.startswith("404 ") for each in load.wrong)
    assert {answer[1:] for answer in load.answers} == {("1", 1.0)}
