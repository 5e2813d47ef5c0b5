"""Once a change of versions has returned, nobody is answered by the old one.

Two gunicorns of two processes each; before each change of `use` nobody asks for a while, or one
gunicorn stands still until the change is done. `make chaos` changes a thousand times.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from http.client import HTTPConnection
from pathlib import Path
from threading import Event
from typing import NamedTuple

import pytest
from ensemble_models import add_ensemble, x_to_y
from ferry_processes import free_port, running_gunicorn, running_worker
from versioned_models import add_model, add_version
from waiting import wait_until

from shared.errors import LoadFailed
from shared.operations.model_control import ModelControl
from shared.registry.registry import Registry
from shared.settings import Settings
from shared.wire.client import connect

CHANGES = int(os.environ.get("CHANGES", "6"))
BURST = 20
BODY = json.dumps(
    {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, -1.0]}]}
)

RESHAPED = {
    "platform": "onnxruntime_onnx", "max_batch_size": 32,
    "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [2, 1], "reshape": {"shape": [2]}}],
    "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [2]}],
}  # fmt: skip
"""A config of `alone` that takes other requests."""


class Server(NamedTuple):
    """A worker, the control of its models, and two APIs: their ports and processes."""

    repository: Path
    control: ModelControl
    registry: Registry
    ports: tuple[int, int]
    masters: tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]
    pool: ThreadPoolExecutor

    def burst(self, path: str) -> Counter[tuple[int, str]]:
        """Ask both APIs many times at once; count statuses and versions."""
        asked = [self.pool.submit(ask, self.ports[n % 2], path) for n in range(BURST)]
        return Counter(each.result() for each in asked)

    def one_stands_still(self) -> AbstractContextManager[None]:
        """Stop all processes of the first API for as long as the block."""
        return stopped(family(self.masters[0].pid))

    def stands_still(self, model: str) -> AbstractContextManager[None]:
        """Stop the process of a model for as long as the block."""
        return stopped([each.pid for each in self.registry.instances()[0] if each.model == model])

    @contextmanager
    def asked_all_the_while(self, path: str) -> Iterator[None]:
        """Ask for as long as the block, one request after the other."""
        done = Event()
        asking = self.pool.submit(
            lambda: [ask(self.ports[0], path) for _ in iter(done.is_set, True)]
        )
        try:
            yield
        finally:
            done.set()
            asking.result()


@contextmanager
def stopped(processes: list[int]) -> Iterator[None]:
    """Have processes stand still for as long as the block."""
    assert processes
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            os.kill(process, signal.SIGCONT)


def ask(port: int, path: str) -> tuple[int, str]:
    """Return the status, and the version by which what was asked was multiplied."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", path, BODY)
        response = connection.getresponse()
        found = json.loads(response.read())
        if response.status != 200:
            return response.status, ""
        (output,) = found["outputs"]
        assert found["model_name"] != "both" or output["data"][0] == int(found["model_version"])
        return 200, f"{output['data'][0]:g}"
    finally:
        connection.close()


def family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in family(int(child)))]


@pytest.fixture(scope="module")
def server(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("models")
    policy = "version_policy: { all {} }"
    add_model(repository, "both", 1, 2, more=policy)
    add_model(repository, "alone", 1)
    for name in ("both", "alone"):
        add_ensemble(
            repository, f"through_{name}", [x_to_y(name, "x", "y")], inputs=["x"], outputs=["y"]
        )
    settings = Settings(
        redis_url=redis_url, key_prefix="hold", models=str(repository), api_processes=2,
        model_control_mode="explicit", load_models="*",
    )  # fmt: skip
    first, second = (Settings(**{**vars(settings), "port": free_port()}) for _ in range(2))
    with (
        connect(redis_url) as redis, running_worker(settings),
        running_gunicorn(first) as one, running_gunicorn(second) as two,
        ThreadPoolExecutor(BURST) as pool,
    ):  # fmt: skip
        control = ModelControl(redis, "hold", "explicit")
        yield Server(
            repository,
            control,
            Registry(redis, "hold"),
            (first.port, second.port),
            (one, two),
            pool,
        )


def test_after_use_all_are_answered_by_it(server: Server) -> None:
    """Every third change after a pause, every third while an API stands still."""
    wrong = Counter[tuple[int, str]]()
    for change in range(CHANGES):
        version = str(1 + change % 2)
        if change % 3 == 0:
            time.sleep(0.7 if change % 2 else 2.0)  # what the APIs know gets old
        with server.one_stands_still() if change % 3 == 1 else nullcontext():
            server.control.use("both", version)
        found = server.burst("/v2/models/both/infer")
        found.pop((200, version), None)
        wrong += found

    assert not wrong


def test_after_use_the_steps_of_ensembles_are_answered_by_it(server: Server) -> None:
    """Also where the ensemble's process stood still meanwhile."""
    server.control.use("both", "1")
    for version in ("2", "1", "2"):
        with server.stands_still("through_both"):
            server.control.use("both", version)
        assert server.burst("/v2/models/through_both/infer") == {(200, version): BURST}


def test_what_is_named_is_answered_by_it_whoever_serves(server: Server) -> None:
    server.control.use("both", "1")
    with server.one_stands_still():
        server.control.use("both", "2")
    for version in ("1", "2"):
        path = f"/v2/models/both/versions/{version}/infer"
        assert server.burst(path) == {(200, version): BURST}


def test_after_a_split_nobody_is_sent_to_what_it_left(server: Server) -> None:
    server.control.use("both", "1")
    server.control.split("both", {"1": 50, "2": 50})
    path = "/v2/models/both/infer"
    # At once it is only sure that nobody is answered by a version that is none of the two.
    wait_until(lambda: len(server.burst(path)) == 2, 10, "both answer")
    with server.one_stands_still():
        server.control.split("both", {})

    assert server.burst(path) == {(200, "1"): BURST}


def test_after_a_load_the_new_version_answers(server: Server) -> None:
    assert server.burst("/v2/models/alone/infer") == {(200, "1"): BURST}
    add_version(server.repository, "alone", 2)
    with server.one_stands_still():
        server.control.load("alone")

    assert server.burst("/v2/models/alone/infer") == {(200, "2"): BURST}
    assert server.burst("/v2/models/alone/versions/2/infer") == {(200, "2"): BURST}
    # Replaced, it stands by for those that name it.
    assert server.burst("/v2/models/alone/versions/1/infer") == {(200, "1"): BURST}


def test_after_an_unload_nobody_is_answered(server: Server) -> None:
    server.control.load("alone")
    ((_, version),) = server.burst("/v2/models/alone/infer")
    with server.one_stands_still():
        server.control.unload("alone")

    assert {status for status, _ in server.burst("/v2/models/alone/infer")} <= {404, 503}
    named = server.burst(f"/v2/models/alone/versions/{version}/infer")
    assert {status for status, _ in named} <= {404, 503}
    server.control.load("alone")
    assert server.burst("/v2/models/alone/infer") == {(200, version): BURST}


def test_after_a_changed_spec_requests_are_checked_by_it(server: Server) -> None:
    """What fits the new content alone is no 400 of the old one's."""
    server.control.load("alone")
    path = "/v2/models/alone/infer"
    ask(server.ports[0], path)
    with server.one_stands_still():
        server.control.load("alone", json.dumps(RESHAPED))

    assert {status for status, _ in server.burst(path)} == {400}
    server.control.load("alone")
    assert {status for status, _ in server.burst(path)} == {200}


def test_after_a_changed_spec_an_ensemble_s_steps_are_checked_by_it(server: Server) -> None:
    """Asked all the while, the ensemble looks every tenth of a second, and not by itself now."""
    path = "/v2/models/through_alone/infer"
    server.control.load("alone")
    right = server.burst("/v2/models/alone/infer")
    for _ in range(3):
        server.control.load("alone", json.dumps(RESHAPED))
        assert {status for status, _ in server.burst(path)} == {400}
        with server.asked_all_the_while(path):
            server.control.load("alone")
            found = server.burst(path)
        assert found == right


def test_a_change_that_cannot_be_leaves_all_as_it_was(server: Server) -> None:
    server.control.use("both", "1")
    with pytest.raises(LoadFailed):
        server.control.use("both", "7")

    assert server.burst("/v2/models/both/infer") == {(200, "1"): BURST}
