"""Places for what takes long: keys have them in turns, and each key's models in turns."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from threading import Event

import numpy as np
import pytest
from registered import register, spec
from test_api_keys import made
from waiting import wait_until

from api.access.fair_line import ASKING, PARTS, UNKEYED, Asking, FairLine
from api.infer.question import Question
from api.services import Services
from shared.access.key_store import KeysInRedis, add
from shared.errors import QueueFull, RequestExpired
from shared.messages import Tensor
from shared.model_spec import TensorSpec
from shared.settings import Settings
from shared.wire.client import connect

SECONDS = 30.0
PLACES = 20


class Held:
    """A line whose one place is held until it is let go; who comes then is written down."""

    def __init__(self) -> None:
        self.line = FairLine(1, PLACES, PARTS * SECONDS)
        self.came: list[str] = []
        self._go = Event()
        self._pool = ThreadPoolExecutor(PLACES + 5)
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
        return self.line._waiting

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
    line = FairLine(1, PLACES, PARTS * 0.05)
    with line.place("m"):
        for _ in range(3):
            began = time.monotonic()
            with pytest.raises(QueueFull, match="bodies and texts"), line.place("m"):
                pass
            assert time.monotonic() - began >= 0.05
    with line.place("m"):
        pass
    assert not line._waiting and not line._lines


def test_who_waits_too_long_has_no_turn_of_its_key() -> None:
    """A key that asks more than there is place for gets its turns as long as it asks."""
    line, came, until = FairLine(1, PLACES, PARTS * 0.2), Counter[str](), time.monotonic() + 3.0

    def ask(key: str) -> None:
        ASKING.set(Asking(key))
        while time.monotonic() < until:
            with suppress(QueueFull), line.place("m"):
                time.sleep(0.02)
                came[key] += 1

    with ThreadPoolExecutor(42) as pool:
        for key in ("modest", "modest", *40 * ["greedy"]):
            pool.submit(ask, key)

    assert came["greedy"] > sum(came.values()) / 4, "it times out, and is served"
    assert came["modest"] > sum(came.values()) / 4
    assert not line._lines


@pytest.mark.parametrize("keys", [("a", "b"), ("", "")])
def test_of_what_may_wait_a_key_leaves_a_fifth_to_others_and_without_keys_a_model(
    keys: tuple[str, str],
) -> None:
    held = Held()
    for number in range(PLACES * 4 // 5 + 1):
        held.ask(f"{number}", keys[0], "slow" if number % 2 and keys[0] else "m")

    ASKING.set(Asking(keys[0]))
    began = time.monotonic()
    with pytest.raises(QueueFull), held.line.place("m"):
        pass
    assert time.monotonic() - began < SECONDS / 2, "at once"
    held.ask("other", keys[1], "other")
    assert "other" in held.end()[:3]


def test_a_place_that_was_given_to_who_has_just_left_goes_on() -> None:
    held = Held()
    line, lost = held.line, Event()
    with line._changing:
        line._lines["ended"] = {"m": {lost: None}}
        line._waiting += 1
    held.ask("next", "b")
    held._go.set()
    wait_until(lost.is_set, 5, "it is called")
    assert not held.came

    line._leave("ended", "m", lost)

    assert held.end() == ["next"]
    with line.place("m"):
        pass


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
    line = FairLine(1, PLACES, PARTS * SECONDS)

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
            wait_until(lambda: line._waiting == 1, 5, "it waits")
            time.sleep(0.05)
        assert 0 < task.result() < SECONDS


@pytest.mark.usefixtures("nobody_asks")
def test_who_asks_is_known_from_the_door_on(settings: Settings) -> None:
    key, secret = made("a")
    store = KeysInRedis(connect(settings.redis_url), settings.key_prefix)
    guard = Services.of(settings).guard

    assert guard.admit(None, None, None) is None
    assert ASKING.get() == UNKEYED
    add(store, key)
    wait_until(guard.keyring.all, 5, "it is known")
    ASKING.set(Asking("another", 7.0))
    guard.admit(secret, None, None)
    assert ASKING.get() == Asking(key.id)
