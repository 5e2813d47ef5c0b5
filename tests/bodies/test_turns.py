"""Who does much at a stretch gives a turn to all whose sockets are ready, at each turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import gevent
import pytest
from gevent.socket import socketpair

from api.server.gunicorn_worker import _rest
from shared.bodies import turns
from shared.bodies.turns import let_others, rest_by

TURNS = 40
"""Fewer than gevent's hub has callbacks between two looks at its sockets."""


@pytest.fixture
def as_gunicorn() -> Iterator[None]:
    rest_by(_rest)
    yield
    turns._rest.clear()


def turns_per_answer(let_go: Callable[[], None]) -> float:
    """Return how many turns of one greenlet pass until another one is sent a byte and back."""
    ours, theirs = socketpair()
    passed, answers = 0, 0

    def echo() -> None:
        while byte := theirs.recv(1):
            theirs.send(byte)

    def ask() -> None:
        nonlocal answers
        while passed < TURNS:
            ours.send(b"x")
            ours.recv(1)
            answers += 1

    clients = [gevent.spawn(echo), gevent.spawn(ask)]
    gevent.sleep(0.01)
    answers = 0
    while passed < TURNS:
        passed += 1
        let_go()
    counted = answers
    gevent.joinall(clients[1:])
    ours.close()
    theirs.close()
    gevent.killall(clients)
    return passed / max(counted, 0.1)


def test_others_are_answered_within_a_few_turns(as_gunicorn: None) -> None:
    assert turns_per_answer(let_others) < 5
    assert turns_per_answer(lambda: gevent.sleep(0)) > 20, "then this could be gevent's own"


def test_between_threads_the_interpreter_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    rested = []
    monkeypatch.setattr(turns.time, "sleep", rested.append)

    let_others()

    assert rested == [0]
