"""A model may raise or do what it likes: its request fails, its instance lives on, and ends."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ferry_processes import running_worker
from formats_repository import add_format
from waiting import wait_until
from worker_processes import Served, numbers, seen

from shared.errors import ModelFailed, described, text_of
from shared.settings import Settings

MODEL = r'''
import asyncio
import os
import signal
import sys
import threading
import warnings


class Unspeakable(Exception):
    def __str__(self):
        raise KeyError("no text")


class Unspeakably(Unspeakable):
    def __str__(self):
        raise SystemExit(4)


class Holding(Exception):
    """Can neither be pickled nor copied."""

    def __init__(self):
        super().__init__("holds a lock")
        self.lock = threading.Lock()


def recurse():
    recurse()


def stop():
    sys.exit(3)


def harmless():
    threading.Thread(target=threading.Event().wait, name="left behind").start()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.chdir("/")
    warnings.simplefilter("error")
    print("a lone \ud83d and 語")
    os.close(0)
    sys.stderr.close()


RAISED = [
    ValueError("a lone \ud83d"),
    Unspeakable(),
    Unspeakably(),
    ValueError("x" * 100_000_000),
    ValueError(b"\xff", "\udcff"),
    SystemExit(2),
    KeyboardInterrupt(),
    GeneratorExit(),
    asyncio.CancelledError(),
    BaseExceptionGroup("many", [KeyboardInterrupt("\ud83d")]),
    ExceptionGroup("some", [ValueError("the first"), ValueError("the second")]),
    Holding(),
    type("Odd\u1234", (BaseException,), {})("odd"),
    StopIteration(5),
]


class Model:
    def forward(self, inputs):
        number = int(inputs["x"].flat[0])
        if number >= 100:
            raise RAISED[number - 100]
        {2: recurse, 3: stop, 4: harmless}.get(number, int)()
        return {"y": inputs["x"]}
'''


@pytest.fixture(scope="module")
def hostile(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    repository = tmp_path_factory.mktemp("hostile")
    add_format(repository, "python", "hostile").write_text(MODEL)
    settings = Settings(redis_url=redis_url, key_prefix="hostile", models=str(repository))
    with running_worker(settings), seen(settings, "hostile") as served:
        yield served
        began = time.monotonic()
    assert time.monotonic() - began < 5, "a thread that a model left behind keeps nobody waiting"


def test_what_a_model_does_besides_answering_harms_nobody(hostile: Served) -> None:
    (before,) = hostile.wait_ready()

    answers = [numbers(hostile.push(value).wait()).flat[0] for value in (4, 1)]

    assert answers == [4.0, 1.0]
    assert [record.pid for record in hostile.ready()] == [before.pid]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (100, "ValueError: a lone \\ud83d"),
        (101, "Unspeakable: its text raises KeyError"),
        (102, "Unspeakably: its text raises SystemExit"),
        (103, f"ValueError: {'x' * 3800}... (100000000 characters)"),
        (104, "ValueError: (b'\\xff', '\\udcff')"),
        (105, "SystemExit: 2"),
        (106, "KeyboardInterrupt"),
        (107, "GeneratorExit"),
        (108, "CancelledError"),
        (109, "BaseExceptionGroup: many (1 sub-exception): KeyboardInterrupt: \\ud83d"),
        (110, "ExceptionGroup: some (2 sub-exceptions): ValueError: the first"),
        (111, "Holding: holds a lock"),
        (112, "Odd\u1234: odd"),
        (113, "StopIteration: 5"),
        (2, "RecursionError: maximum recursion depth exceeded"),
        (3, "SystemExit: 3"),
    ],
)
def test_only_the_request_fails_whatever_is_raised(hostile: Served, number: int, said: str) -> None:
    (before,) = hostile.wait_ready()

    with pytest.raises(ModelFailed) as failed:
        hostile.push(number).wait()
    after = numbers(hostile.push(1.0).wait())

    assert failed.value.message == said
    assert after.tolist() == [[1.0, 1.0]]
    assert [record.pid for record in hostile.ready()] == [before.pid]


FAILS_TO_LOAD = """
import threading

threading.Thread(target=threading.Event().wait).start()


class Model:
    def __init__(self):
        raise {}

    def forward(self, inputs): ...
"""


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        ("ValueError('a lone \\ud83d')", "ValueError in line 9: a lone \\ud83d"),
        ("KeyboardInterrupt", "KeyboardInterrupt in line 9"),
    ],
)
def test_why_it_cannot_be_loaded_is_said_and_it_is_tried_again(
    redis_url: str, tmp_path: Path, raised: str, said: str
) -> None:
    add_format(tmp_path, "python", "broken").write_text(FAILS_TO_LOAD.format(raised))
    settings = Settings(redis_url=redis_url, key_prefix=raised[:5], models=str(tmp_path))

    with running_worker(settings, wait_ready=False), seen(settings, "broken") as broken:
        wait_until(lambda: any(said in record.reason for record in broken.records()), 60, said)
        wait_until(lambda: any(r.id.endswith(".2") for r in broken.records()), 60, "a second try")


def test_what_a_script_says_is_told_without_its_traceback() -> None:
    """As `torch.jit` raises it, here for a matrix of another type."""
    traced = (
        "The following operation failed in the TorchScript interpreter.\n"
        "Traceback of TorchScript, serialized code (most recent call last):\n"
        '  File "code/__torch__.py", line 10, in forward\n    ~~~~~~ <--- HERE\n'
        "RuntimeError: mat1 and mat2 must have the same dtype, but got Long and Float\n"
        "and more\n"
    )

    said = "RuntimeError: mat1 and mat2 must have the same dtype, but got Long and Float\nand more"
    assert described(RuntimeError(traced)) == said


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (
            "[ONNXRuntimeError] : 1 : FAIL : Load model from /m/model.onnx failed:/src/core/graph/"
            "model.cc:256 a::Model::Model(onnx::ModelProto&&, const a::Path&) Unsupported version",
            "Unsupported version",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Load model from /m failed:/src/load_utils.h:46 void "
            "a::Check(const std::map<std::string, int>&, int) ONNX Runtime supports 26",
            "ONNX Runtime supports 26",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : It failed. Error: utils.cc:461 Validate It is missing",
            "It failed. Error: It is missing",
        ),
        ("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got: 3 Expected: 2", "Got: 3 Expected: 2"),
        ("line model.h:3 is mine", "line model.h:3 is mine"),
    ],
)
def test_what_onnx_runtime_says_is_told_without_lines_of_its_source(raised: str, told: str) -> None:
    assert text_of(ValueError(raised)) == told
