"""Versions that do not fit twice: the one that is replaced leaves first, and clients are told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from ferry_processes import running_worker
from flask.testing import FlaskClient
from waiting import wait_until

from api.app import create_app
from shared.operations.model_control import ModelControl
from shared.registry.desired_state import (
    Desired,
    ModelReport,
    Serving,
    VersionReport,
    VersionState,
    promoted,
)
from shared.settings import Settings
from shared.wire.client import connect
from worker.repository.config.parameters import stops_first

CONFIG = """
backend: "python" max_batch_size: 4
input [ { name: "x" data_type: TYPE_FP32 dims: [2] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [2] } ]
instance_group [ { kind: KIND_CPU } ]
parameters { key: "swap" value { string_value: "stop_first" } }
"""
MODEL = """
import time
class Model:
    def load(self, context):
        self.version, self.told = context.version, context.directory.parents[2] / "told"
        self.tell("load")
        while not (context.directory.parents[2] / f"may load {self.version}").exists():
            time.sleep(0.01)
    def tell(self, word):
        with self.told.open("a") as file:
            file.write(f"{word} {self.version}\\n")
    def forward(self, inputs):
        return {"y": inputs["x"] * int(self.version)}
    def close(self):
        self.tell("close")
"""
X = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}


class Turns:
    """A model whose versions take turns, and its files."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.folder = folder
        self.control = ModelControl(
            connect(settings.redis_url), settings.key_prefix, settings.model_control_mode
        )
        self.client: FlaskClient = create_app(settings).test_client()

    def add(self, version: str) -> None:
        directory = self.folder / "models" / "turns" / version
        directory.mkdir(parents=True)
        (directory / "model.py").write_text(MODEL)

    def may_load(self, version: str) -> None:
        (self.folder / f"may load {version}").touch()

    def told(self) -> list[str]:
        return (self.folder / "told").read_text().splitlines()

    def ask(self) -> tuple[int, Any]:
        answer = self.client.post("/v2/models/turns/infer", json={"inputs": [X]})
        return answer.status_code, answer.json


@pytest.fixture(scope="module")
def turns(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Turns]:
    """It serves version 1 in mode explicit."""
    folder = tmp_path_factory.mktemp("turns")
    settings = Settings(
        redis_url=redis_url, key_prefix="turns", models=str(folder / "models"),
        model_control_mode="explicit", load_models="*",
    )  # fmt: skip
    found = Turns(settings, folder)
    found.add("1")
    (folder / "models" / "turns" / "config.pbtxt").write_text(CONFIG)
    found.may_load("1")
    with running_worker(settings):
        yield found


def test_the_version_that_is_replaced_leaves_before_the_next_is_loaded(turns: Turns) -> None:
    assert turns.ask()[1]["outputs"][0]["data"] == [1.0, 2.0]
    turns.add("2")
    loading = Thread(target=turns.control.load, args=("turns",))
    loading.start()
    wait_until(lambda: "load 2" in turns.told(), 60, "version 2 begins to load")

    assert turns.told() == ["load 1", "close 1", "load 2"]
    status, answer = turns.ask()
    assert (status, answer["code"]) == (503, "model_not_ready")

    turns.may_load("2")
    loading.join()
    assert turns.ask()[1]["outputs"][0]["data"] == [2.0, 4.0]


def test_going_back_takes_turns_as_well(turns: Turns) -> None:
    before = turns.told()

    turns.control.use("turns", "1")

    wait_until(lambda: turns.ask()[0] == 200, 60, "version 1 is back")
    assert turns.ask()[1]["outputs"][0]["data"] == [1.0, 2.0]
    assert turns.told()[len(before) :] == ["close 2", "load 1"]


SERVED = Serving(versions={"1": "m/1"}, default="1")


def reported(states: dict[str, VersionState], waiting: str = "") -> ModelReport:
    """Report versions, of which `waiting` is to be loaded once what it replaces has left."""
    return ModelReport(
        versions={
            version: VersionReport(key=f"m/{version}", state=state, stop_first=version == waiting)
            for version, state in states.items()
        }
    )


def test_nobody_serves_while_a_version_waits_for_the_one_that_it_replaces() -> None:
    wanted = Desired()
    assert promoted(SERVED, wanted, [reported({"2": "loading"}, "2")]) is None
    assert promoted(SERVED, wanted, [reported({"2": "loading"})]) == SERVED
    assert promoted(None, wanted, [reported({"2": "loading"}, "2")]) is None
    assert promoted(None, wanted, [reported({"2": "ready"})]) is not None


def test_what_is_wanted_as_well_serves_on() -> None:
    assert promoted(SERVED, Desired(), [reported({"1": "ready", "2": "loading"}, "2")]) == SERVED


def test_one_machine_whose_version_waits_is_enough() -> None:
    others = [reported({"2": "ready"}), reported({"2": "loading"}, "2")]

    assert promoted(SERVED, Desired(), others) is None


def test_a_word_that_nobody_knows_is_refused() -> None:
    assert stops_first({"swap": "stop_first"})
    assert not stops_first({"swap": "overlap"})
    assert not stops_first({})
    with pytest.raises(ValueError, match="swap 'first': expected overlap or stop_first"):
        stops_first({"swap": "first"})
