"""A `model.py` with our own class: told where it is, asked in batches, free to print and fail."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from ferry_processes import running_worker
from formats_repository import PARAMETER, add_format
from loaded import PLAIN, floats, load, own_imports, spec, tensor, texts
from worker_processes import numbers, seen

from shared.errors import BadModel
from shared.model_spec import ImageInput
from shared.settings import Settings
from worker.backends.base import Backend, close
from worker.devices import Placement
from worker.instance import warmup
from worker.instance.process import warm_backend
from worker.job import InstanceJob
from worker.meter import Meter

X = [tensor("x")]
Y = [tensor("y")]


@pytest.fixture(autouse=True)
def imports() -> Iterator[None]:
    with own_imports():
        yield


def python(directory: Path, code: str, **parameters: str) -> Backend:
    """Load a model.py with FP32 x and y."""
    file = directory / "model.py"
    file.write_text(code)
    return load("python", spec(X, Y, **parameters), file)


def test_a_class_with_forward_is_a_model(tmp_path: Path) -> None:
    backend = python(
        tmp_path,
        "class Model:\n    def forward(self, inputs):\n        return {'y': inputs['x'] * 2}\n",
    )

    outputs = backend.forward({"x": floats([1, 2], [3, 4])}, PLAIN)

    assert outputs["y"].tolist() == [[2.0, 4.0], [6.0, 8.0]]


LOADED = """
import json
from pathlib import Path

import numpy as np


class Model:
    def load(self, context):
        self.context = context
        self.factor = np.float32(json.loads((context.directory / "factor.json").read_text()))

    def forward(self, inputs):
        print("a line on standard output")
        return {"y": inputs["x"] * self.factor}

    def close(self):
        (self.context.directory / "closed").write_text(
            f"{self.context.name} {self.context.version} {self.context.device} "
            f"{self.context.threads} {self.context.parameters['colour']} "
            f"{self.context.inputs[0].name} {self.context.outputs[0].datatype}"
        )
"""


def test_it_is_told_where_it_lies_and_runs_and_may_clean_up(tmp_path: Path) -> None:
    (tmp_path / "factor.json").write_text("3")
    backend = python(tmp_path, LOADED, colour="red")

    assert backend.forward({"x": floats([1, 2])}, PLAIN)["y"].tolist() == [[3.0, 6.0]]
    close(backend)

    assert (tmp_path / "closed").read_text() == "m 1 cpu 1 red x FP32"


def test_it_may_go_to_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data.txt").write_text("5")
    code = (
        "import os\nfrom pathlib import Path\nos.chdir('/')\n"
        "class Model:\n    def forward(self, inputs):\n"
        "        factor = int(Path(__file__).with_name('data.txt').read_text())\n"
        "        return {'y': inputs['x'] * factor}\n"
    )
    monkeypatch.chdir(tmp_path)

    backend = python(Path(), code)

    assert backend.forward({"x": floats([1, 2])}, PLAIN)["y"].tolist() == [[5.0, 10.0]]


def test_it_imports_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "ferry_test_helper.py").write_text("FACTOR = 5\n")
    code = (
        "from ferry_test_helper import FACTOR\n"
        "class Model:\n    def forward(self, inputs):\n        return {'y': inputs['x'] * FACTOR}\n"
    )

    backend = python(tmp_path / "1", code)

    assert backend.forward({"x": floats([1, 1])}, PLAIN)["y"].tolist() == [[5.0, 5.0]]


def test_strings_are_bytes_both_ways(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        "import numpy as np\n"
        "class Model:\n"
        "    def forward(self, inputs):\n"
        "        rows = [[text.upper()] for text in inputs['x'].ravel()]\n"
        "        return {'y': np.array(rows, dtype=object)}\n"
    )
    described = spec([tensor("x", "BYTES", 1)], [tensor("y", "BYTES", 1)])
    backend = load("python", described, tmp_path / "model.py")

    found = backend.forward({"x": texts("a", "bc")}, PLAIN)["y"]

    assert found.tolist() == [[b"A"], [b"BC"]]


def test_it_may_write_into_its_inputs_and_no_request_is_touched(tmp_path: Path) -> None:
    backend = python(
        tmp_path,
        "class Model:\n    def forward(self, inputs):\n"
        "        inputs['x'] *= 2\n        return {'y': inputs['x']}\n",
    )
    message = floats([1, 2]).tobytes()

    outputs = backend.forward({"x": np.frombuffer(message, np.float32).reshape(1, 2)}, PLAIN)

    assert outputs["y"].tolist() == [[2.0, 4.0]]
    assert message == floats([1, 2]).tobytes()


def test_pictures_reach_it_normalised(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        "class Model:\n    def forward(self, inputs):\n        return {'y': inputs['x']}\n"
    )
    picture = ImageInput(input="x", height=1, width=2, scale=0.5)
    described = spec([tensor("x", "FP32", 3, 1, 2)], [tensor("y", "FP32", 3, 1, 2)])
    backend = load("python", described.model_copy(update={"image": picture}), tmp_path / "model.py")

    found = backend.forward({"x": np.full((1, 1, 2, 3), 4, np.uint8)}, frozenset({"x"}))["y"]

    assert found.tolist() == np.full((1, 3, 1, 2), 2.0).tolist()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("", "defines neither a class Model nor a class TritonPythonModel"),
        ("x = 1 / 0\n", "ZeroDivisionError in line 1: division by zero"),
        ("\nclass Model\n", "SyntaxError"),
        ("import nowhere_to_be_found\n", "ModuleNotFoundError in line 1: No module named"),
        ("import sys\nsys.exit(3)\n", "SystemExit in line 2: 3"),
        ("class Model:\n    pass\n", "the class Model has no forward"),
        (
            "class Model:\n    def load(self, context):\n        raise KeyError('weights')\n"
            "    def forward(self, inputs): ...\n",
            "KeyError in line 3: 'weights'",
        ),
    ],
)
def test_why_a_file_is_no_model_is_said_with_the_line(
    tmp_path: Path, code: str, message: str
) -> None:
    with pytest.raises(BadModel, match=message):
        python(tmp_path, code + " ")


def instance(file: Path) -> InstanceJob:
    return InstanceJob(
        "i", spec(X, Y), "python", file, Placement("cpu", torch.get_num_threads()),
        "redis://", "x", 1.0, "INFO",
    )  # fmt: skip


CHOOSY = """
class Model:
    def forward(self, inputs):
        if not (inputs["x"] == 2).all():
            raise ValueError("made up")
        return {"y": inputs["x"]}
"""


def test_one_that_refuses_what_it_is_warmed_up_with_is_served_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "model.py").write_text(CHOOSY)

    with caplog.at_level(logging.WARNING):
        warm = warm_backend(instance(tmp_path / "model.py"), Meter())

    assert warm.backend.forward({"x": floats([2, 2])}, PLAIN)["y"].tolist() == [[2.0, 2.0]]
    note = "served cold: what is made up to warm it fails: ValueError: made up"
    assert warm.note == note
    assert f"m/1: {note}" in caplog.text


MODAL = """
import torch


class Model:
    def forward(self, inputs):
        if not torch.is_inference_mode_enabled():
            raise ValueError("gradients")
        return {"y": inputs["x"]}
"""


def test_one_is_warmed_up_as_it_serves(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODAL)

    assert warm_backend(instance(tmp_path / "model.py"), Meter()).note == ""


FORGETFUL = """
class Model:
    def __init__(self):
        self.seen = set()

    def forward(self, inputs):
        rows = inputs["x"].tobytes()
        if rows in self.seen:
            raise ValueError("asked before")
        self.seen.add(rows)
        return {"y": inputs["x"]}
"""


def test_what_warmed_one_proves_nothing_later_if_it_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(FORGETFUL)

    health = warm_backend(instance(tmp_path / "model.py"), Meter()).health

    assert (health.known_good, health.learns) == (None, True)


NO_ONES = """
class Model:
    def forward(self, inputs):
        if (inputs["x"] == 1).all():
            raise ValueError("ones")
        return {"y": inputs["x"]}
"""


def test_what_warmed_one_before_is_tried_first_however_slow_it_refuses_other_things(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.py").write_text(NO_ONES)
    meter = Meter()

    assert warm_backend(instance(tmp_path / "model.py"), meter).note == ""
    meter.reset()  # as before the next process
    monkeypatch.setattr(warmup, "SLOW_REFUSAL_SECONDS", 0.0)
    monkeypatch.setattr(warmup, "SLOW_REFUSALS", 1)

    assert warm_backend(instance(tmp_path / "model.py"), meter).note == ""
    assert "ValueError: ones" in warm_backend(instance(tmp_path / "model.py"), Meter()).note


SLOW_AT_FIRST = """
import time


class Model:
    asked = 0

    def forward(self, inputs):
        self.asked += 1
        if self.asked <= SLOW:
            time.sleep(0.02)
            raise ValueError(f"refused {self.asked}")
        return {"y": inputs["x"]}
"""


@pytest.mark.parametrize(("slow", "note"), [(1, ""), (2, "fails: ValueError: refused 1")])
def test_one_slow_refusal_is_a_first_pass_and_two_are_a_slow_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: int, note: str
) -> None:
    (tmp_path / "model.py").write_text(SLOW_AT_FIRST.replace("SLOW", str(slow)))
    monkeypatch.setattr(warmup, "SLOW_REFUSAL_SECONDS", 0.01)

    found = warm_backend(instance(tmp_path / "model.py"), Meter()).note
    assert found.rpartition("what is made up to warm it ")[2] == note


TOLD_AGAIN = """
import os
import signal
import threading


class Model(Model):
    def close(self):
        super().close()
        threading.Thread(target=self.tell).start()

    def tell(self):
        threading.main_thread().join()
        os.kill(os.getpid(), signal.SIGTERM)
        (self.context.directory / "told").touch()
"""


def test_a_worker_serves_one_that_prints_and_lets_it_clean_up(
    redis_url: str, tmp_path: Path
) -> None:
    file = add_format(tmp_path, "python", "own")
    file.write_text(LOADED + TOLD_AGAIN)
    (file.parent / "factor.json").write_text("4")
    log = tmp_path / "log"
    config = file.parent.parent / "config.pbtxt"
    config.write_text(config.read_text() + PARAMETER.format("colour", "blue"))
    settings = Settings(redis_url=redis_url, key_prefix="own-python", models=str(tmp_path))

    with running_worker(settings, log_file=log), seen(settings, "own") as own:
        answers = [numbers(own.push(value).wait()).tolist() for value in (1.0, 2.0)]

    assert answers == [[[4.0, 4.0]], [[8.0, 8.0]]]
    assert (file.parent / "closed").read_text().startswith("own 1 cpu ")
    assert (file.parent / "told").exists(), "SIGTERM came once more while the process ended"
    assert "ignored" not in log.read_text()
