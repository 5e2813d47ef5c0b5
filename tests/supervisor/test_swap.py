"""Versions replaced under load: nothing fails, and every answer is from the version it names."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
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
SWAPS = int(os.environ.get("SWAPS", "5"))
"""`make chaos` swaps twenty times."""
Answer = tuple[int, str, float]


class Load:
    """Clients that ask without a pause; `answers` are (status, version, factor)."""

    def __init__(self, port: int, clients: int = CLIENTS) -> None:
        self._port = port
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
            connection.request("POST", "/v2/models/m/infer", json.dumps(body))
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


@contextmanager
def asked(port: int, clients: int = CLIENTS) -> Iterator[Load]:
    load = Load(port, clients)
    try:
        wait_until(lambda: len(load.answers) > clients, 30, "the clients are answered")
        yield load
    finally:
        load.finish()


@contextmanager
def served(settings: Settings, repository: Path, **more: Any) -> Iterator[tuple[int, ModelControl]]:
    """A worker and an API over `repository`: the API's port, and control of the models."""
    settings = replace(
        settings, models=str(repository), port=free_port(), model_control_mode="explicit",
        load_models="*", **more,
    )  # fmt: skip
    with connect(settings.redis_url) as redis, running_worker(settings), running_gunicorn(settings):
        yield settings.port, ModelControl(redis, settings.key_prefix, "explicit")


@pytest.mark.parametrize("standby_seconds", [60.0, 0.0])
def test_swaps_under_load_lose_and_mix_nothing(
    settings: Settings, tmp_path: Path, standby_seconds: float
) -> None:
    add_model(tmp_path, "m", 1)

    with (
        served(settings, tmp_path, standby_seconds=standby_seconds) as (port, control),
        asked(port) as load,
    ):
        for version in range(2, SWAPS + 2):
            add_version(tmp_path, "m", version)
            remove_version(tmp_path, "m", version - 1)
            control.load("m")
            load.wait_until_all_are((str(version), float(version)))

    assert load.wrong == []
    assert {version for _, version, _ in load.answers} == {str(n) for n in range(1, SWAPS + 2)}
    assert all(factor == float(version) for _, version, factor in load.answers)


def test_content_replaced_within_a_version_mixes_nothing(
    settings: Settings, tmp_path: Path
) -> None:
    directory = add_model(tmp_path, "m", 1)

    with (
        served(settings, tmp_path, standby_seconds=0.0) as (port, control),
        asked(port) as load,
    ):
        for factor in (2.0, 3.0, 1.0):
            write_model(directory / "1" / "model.onnx", factor)
            control.load("m")
            load.wait_until_all_are(("1", factor))

    assert load.wrong == []


def test_a_broken_version_takes_no_request(settings: Settings, tmp_path: Path) -> None:
    add_model(tmp_path, "m", 1)

    with served(settings, tmp_path) as (port, control), asked(port) as load:
        add_broken(tmp_path, "m", 2)
        with pytest.raises(LoadFailed, match=r"model\.onnx"):
            control.load("m")
        before = len(load.answers)
        wait_until(lambda: len(load.answers) > before + CLIENTS, 30, "answers go on")

    assert load.wrong == []
    assert {version for _, version, _ in load.answers} == {"1"}


def test_a_rollback_brings_the_version_before_back(settings: Settings, tmp_path: Path) -> None:
    add_model(tmp_path, "m", 1)

    with served(settings, tmp_path) as (port, control), asked(port) as load:
        add_version(tmp_path, "m", 2)
        control.load("m")
        control.use("m", "1")
        load.wait_until_all_are(("1", 1.0))
        control.use("m", "")
        load.wait_until_all_are(("2", 2.0))

    assert load.wrong == []


def test_a_split_shares_requests_out_by_its_weights(settings: Settings, tmp_path: Path) -> None:
    add_model(tmp_path, "m", 2)

    with served(settings, tmp_path) as (port, control), asked(port, 8) as load:
        add_version(tmp_path, "m", 3)
        control.split("m", {"2": 90, "3": 10})
        before = len(load.answers) + 100
        wait_until(lambda: len(load.answers) > before + 2000, 60, "answers come")
        versions = [version for _, version, _ in load.answers[before:]]
        assert 0.05 < versions.count("3") / len(versions) < 0.15
        control.split("m", {})
        load.wait_until_all_are(("2", 2.0), count=300)

    assert load.wrong == []
