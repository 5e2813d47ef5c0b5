"""Who does much at a stretch gives a turn to all whose sockets are ready, at each turn."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from ferry_processes import ROOT

from shared.bodies import turns
from shared.bodies.turns import let_others

PROGRAM = """
import json
import gevent
from gevent.socket import socketpair
from api.server.gunicorn_worker import _rest
from shared.bodies.turns import let_others, rest_by

TURNS = 40  # fewer than gevent's hub has callbacks between two looks at its sockets


def turns_per_answer(let_go):
    ours, theirs = socketpair()
    passed, answers = 0, 0

    def echo():
        while byte := theirs.recv(1):
            theirs.send(byte)

    def ask():
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
    gevent.joinall(clients)
    return passed / max(counted, 0.1)


rest_by(_rest)
print(json.dumps([turns_per_answer(let_others), turns_per_answer(lambda: gevent.sleep(0))]))
"""


def test_others_are_answered_within_a_few_turns() -> None:
    """In a process of its own: the hub is that of a whole thread."""
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, timeout=120, check=True
    )
    ours, of_gevent = json.loads(ran.stdout)

    assert ours < 5
    assert of_gevent > 20, "then this could be gevent's own"


def test_between_threads_the_interpreter_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    rested = []
    monkeypatch.setattr(turns.time, "sleep", rested.append)

    let_others()

    assert rested == [0]
