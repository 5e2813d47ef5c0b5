"""Places for what takes long: keys have them in turns, and each key's models in turns."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from threading import Event

import numpy as np
import pytest
from registered import register, spec
from waiting import wait_until

from api.infer.question import Question
from api.services import Services
from shared.errors import QueueFull, RequestExpired
from shared.inputs.fair_line import ASKING, UNKEYED, Asking, FairLine
from shared.messages import Tensor
from shared.model_spec import TensorSpec
from shared.settings import Settings

SECONDS = 30.0


class Held:
    """A line whose one place is held until it is let go; who comes then is written down."""

    def __init__(self) -> None:
        self.line = FairLine(1, SECONDS)
        self.came: list[str] = []
        self._go = Event()
        self._pool = ThreadPoolExecutor(20)
        self._tasks = [self._pool.submit(self._hold)]
        wait_until(lambda: self._is_held, 5, "the place is held")

    def _hold(self) -> None:
        with self.line.place("first"):
            self._is_held = True
            self._go.wait(SECONDS)

    _is_held = False

    def ask(self, name: str, key: str, model: str = "m") -> Future[None]:
        """Wait in the line, behind all who do."""
        waiting = self.waiting
        task = self._pool.submit(self._ask, name, key, model)
        self._tasks.append(task)
        wait_until(lambda: self.waiting > waiting, 5, f"{name} waits")
        return task

    @property
    def waiting(self) -> int:
        """How many do."""
        models = [each for key in self.line._waiting.values() for each in key.values()]
        return sum(map(len, models))

    def _ask(self, name: str, key: str, model: str) -> None:
        ASKING.set(Asking(key))
        with self.line.place(model):
            self.came.append(name)

    def end(self) -> list[str]:
        """Let go; return who came, in order."""
        self._go.set()
        self._pool.shutdown()
        for task in self._tasks:
            task.result()
        return self.came


def test_keys_have_turns_however_many_one_asks() -> None:
    held = Held()
    for number in range(4):
        held.ask(f"a{number}", "a")
    held.ask("b0", "b")
    held.ask("b1", "b")
    held.ask("c0", "c")

    assert held.end() == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]


def test_a_keys_models_have_turns_in_its_own() -> None:
    held = Held()
    for number in range(3):
        held.ask(f"slow{number}", "a", "slow")
    held.ask("quick", "a", "quick")
    held.ask("other", "b")

    assert held.end() == ["slow0", "other", "quick", "slow1", "slow2"]


def test_who_has_waited_long_is_refused_and_holds_up_nobody() -> None:
    line = FairLine(1, 0.05)
    with line.place("m"):
        for _ in range(3):
            with pytest.raises(QueueFull, match="bodies and texts"), line.place("m"):
                pass
    with line.place("m"):
        pass
    assert not line._waiting


def test_who_is_ended_while_it_waits_gives_its_turn_on() -> None:
    """As gevent ends a greenlet: by an exception in the middle of its wait."""

    class Ended(BaseException):
        pass

    held = Held()
    waits = Event.wait

    def wait(self: Event, timeout: float | None = None) -> bool:
        if ASKING.get().key == "ended":
            waits(self, 0.2)
            raise Ended
        return waits(self, timeout)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Event, "wait", wait)
        ended = held.ask("ended", "ended")
        with pytest.raises(Ended):
            ended.result(SECONDS)
        held._tasks.remove(ended)
        held.ask("next", "b")

    assert held.end() == ["next"]


@pytest.fixture
def nobody_asks() -> Iterator[None]:
    yield
    ASKING.set(UNKEYED)


@pytest.mark.usefixtures("nobody_asks")
def test_a_requests_deadline_counts_from_the_line_on(settings: Settings) -> None:
    model = spec("model", TensorSpec(name="x", datatype="FP32", dims=(1,)))
    register(settings, model)
    services = Services.of(replace(settings, request_timeout_seconds=2.0))
    question = Question(model, (Tensor.of("x", np.zeros((1, 1), np.float32)),))

    ASKING.set(Asking("", 1.5))
    pending = services.queues.push(question)
    began = time.monotonic()
    with pytest.raises(RequestExpired):
        pending.wait()
    assert time.monotonic() - began < 1.5

    ASKING.set(Asking("", 2.5))
    with pytest.raises(RequestExpired):
        services.queues.push(question)


def test_the_time_in_lines_adds_up() -> None:
    line = FairLine(1, SECONDS)

    def ask_twice() -> float:
        ASKING.set(UNKEYED)
        for _ in range(2):
            with line.place("m"):
                pass
        return ASKING.get().waited_seconds

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(ask_twice).result() == 0
        with line.place("m"):
            task = pool.submit(ask_twice)
            time.sleep(0.2)
        assert 0.15 < task.result() < SECONDS
