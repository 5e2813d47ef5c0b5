"""The walk of the README is the way that a request takes: eight functions, in this order."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import Any

import pytest
import torch
from registered import register
from rooms import ROOT, product_modules
from waiting import wait_until

from api.app import create_app
from shared.model_spec import ModelSpec, TensorSpec
from shared.request_queue.keys import QueueKeys
from shared.request_queue.limits import Batching
from shared.request_queue.worker_end import WorkQueue
from shared.settings import Settings
from shared.wire.client import connect
from shared.wire.wire import open_wire
from worker.backends.torch_model import Argument, TorchBackend
from worker.instance.batch import answer_batch
from worker.instance.loop import run
from worker.meter import Meter

README = (ROOT / "README.md").read_text(encoding="utf-8")
WALK = re.findall(r"^\d\. `([\w/]+\.py):([\w.]+)`", README, re.MULTILINE)
STOP = re.compile(r"\bstop (\d)")
MAX_LINES = 250
SPEC = ModelSpec(
    name="doubled",
    version="1",
    platform="pytorch_libtorch",
    max_batch_size=8,
    inputs=(TensorSpec(name="x", datatype="FP32", dims=(2,)),),
    outputs=(TensorSpec(name="y", datatype="FP32", dims=(2,)),),
)
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}


@contextmanager
def traced() -> Iterator[list[tuple[str, str]]]:
    """Note the functions of the product that threads begun in the block enter, in order."""
    entered: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        file = Path(frame.f_code.co_filename)
        if event == "call" and file.is_relative_to(ROOT):
            entered.append((file.relative_to(ROOT).as_posix(), frame.f_code.co_qualname))

    threading.setprofile(note)
    try:
        yield entered
    finally:
        threading.setprofile(None)  # type: ignore[arg-type]


@contextmanager
def serving(settings: Settings) -> Iterator[None]:
    """Serve a torch model by a thread of this process, for as long as the block."""
    redis, stopped = connect(settings.redis_url), threading.Event()
    keys = QueueKeys.of(SPEC, settings.key_prefix)
    queue = WorkQueue(
        open_wire(redis), keys, "walk", result_ttl_seconds=60.0, batching=Batching.of(SPEC)
    )
    backend = TorchBackend(SPEC, lambda x: x * 2, [Argument("x")], torch.device("cpu"))
    answer = partial(answer_batch, spec=SPEC, backend=backend, instance="walk")
    wait_until(lambda: redis.llen(keys.queues[0]), 10, "a request on the queue")
    thread = Thread(
        target=partial(run, max_rows=SPEC.batch_rows, max_delay_seconds=0.0),
        args=(queue, answer, stopped.is_set, Meter()),
    )
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        redis.rpush(keys.bell, "1")
        thread.join(timeout=30)
        redis.close()


def test_a_request_enters_the_eight_functions_of_the_walk_in_order(settings: Settings) -> None:
    register(settings, SPEC)
    client = create_app(settings).test_client()
    answers: list[Any] = []

    with traced() as entered:
        asking = Thread(
            target=lambda: answers.append(client.post("/v2/models/doubled/infer", json=BODY).json)
        )
        asking.start()
        with serving(settings):
            asking.join(timeout=30)

    assert answers[0]["outputs"][0]["data"] == [2.0, 4.0]
    first = {function: place for place, function in reversed(list(enumerate(entered)))}
    assert [function for function in WALK if function not in first] == []
    assert sorted(WALK, key=first.__getitem__) == WALK


def test_the_walk_has_eight_files() -> None:
    assert len({file for file, _ in WALK}) == len(WALK) == 8


def test_files_that_name_their_stop_count_as_the_readme_does() -> None:
    own = {file: stop for stop, (file, _) in enumerate(WALK, 1)}
    named = {
        (file.relative_to(ROOT).as_posix(), int(stop))
        for file in product_modules().values()
        for stop in STOP.findall(file.read_text(encoding="utf-8"))
    }

    assert {file for file, _ in named} >= own.keys()
    assert {(file, stop) for file, stop in named if own.get(file, stop) != stop} == set()


@pytest.mark.parametrize("file", [file for file, _ in WALK])
def test_a_file_of_the_walk_is_read_in_a_minute(file: str) -> None:
    assert len((ROOT / file).read_text(encoding="utf-8").splitlines()) < MAX_LINES


def test_the_trace_sees_threads_that_begin_in_its_block() -> None:
    with traced() as entered:
        thread = Thread(target=QueueKeys.of, args=(SPEC, "p"))
        thread.start()
        thread.join()

    assert ("shared/request_queue/keys.py", "QueueKeys.of") in entered
    assert sys.getprofile() is None
