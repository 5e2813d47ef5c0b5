"""The crash programme would notice wrong answers, failures, lost requests, needless refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import numpy as np
import pytest
from waiting import wait_until

from chaos.__main__ import parse_arguments
from chaos.client import Answer, Client, Tally, Trouble
from chaos.load import Gate
from chaos.questions import Prepared
from chaos.run import Plan
from chaos.scenarios import SCENARIOS
from chaos.strikes import Strike
from chaos.verdict import judge

TWICE = Prepared("x", np.array([[1.0, 2.0]], np.float32), np.array([[2.0, 4.0]], np.float32))
INSTANCE = SCENARIOS["instance"]


class Server(BaseHTTPRequestHandler):
    """Answers one request as `mood` says, and keeps the connection."""

    protocol_version = "HTTP/1.1"
    mood = ""
    served = 0

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).served += 1
        if self.mood == "hangs up" or (self.mood == "hangs up later" and self.served == 2):
            self.close_connection = True
            return
        number = {"other row": 3.0}.get(self.mood, 4.0)
        reply = {
            "id": "another" if self.mood == "other id" else asked["id"],
            "model_version": {"other version": "2", "no version": "x"}.get(self.mood, "1"),
            "outputs": [{"data": [2.0, number]}],
            "timings": {"instance": "i", "attempts": 1},
        }
        refused = self.mood == "refuses once" and self.served == 1
        self.send_response(503 if refused else {"fails": 500}.get(self.mood, 200))
        if refused:
            self.send_header("Retry-After", "0")
        body = json.dumps(reply).encode()
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@contextmanager
def serving(mood: str) -> Iterator[int]:
    handler = type("Moody", (Server,), {"mood": mood, "served": 0})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def asked(mood: str, times: int = 1) -> Tally:
    """Ask a server in some mood so many times, by one client."""
    with serving(mood) as port:
        client = Client(0, port, "m", TWICE, lambda: client.tally.sent < times)
        client.run()
    return client.tally


def test_a_right_answer_is_counted_with_its_instance() -> None:
    tally = asked("answers", times=3)

    assert (tally.sent, len(tally.answers), tally.failures, tally.wrong) == (3, 3, [], [])
    assert tally.answers[0].instance == "i"
    assert tally.reconnected == 0


@pytest.mark.parametrize("mood", ["other row", "other id", "other version", "no version"])
def test_an_answer_that_belongs_to_another_request_is_wrong(mood: str) -> None:
    tally = asked(mood)

    assert (tally.sent, len(tally.answers), len(tally.wrong)) == (1, 0, 1)


@pytest.mark.parametrize("mood", ["fails", "hangs up"])
def test_an_error_and_a_lost_connection_are_failures(mood: str) -> None:
    tally = asked(mood)

    assert (tally.sent, len(tally.answers), len(tally.failures)) == (1, 0, 1)


def test_a_connection_that_was_kept_alive_is_opened_again_once() -> None:
    tally = asked("hangs up later", times=2)

    assert (tally.sent, len(tally.answers), tally.reconnected) == (2, 2, 1)


def test_a_refused_request_is_asked_again_and_counted_once() -> None:
    tally = asked("refuses once")

    assert (tally.sent, len(tally.answers), len(tally.refusals)) == (1, 1, 1)


def test_a_refusal_is_a_failure_unless_redis_was_away() -> None:
    answers = [Answer(0.0, 20.0, "i", 1)]
    tally = Tally(1, answers, refusals=[Trouble(sent_at, "503") for sent_at in (5.0, 9.95, 12.0)])

    assert judge(INSTANCE, tally, [Strike(10.0)]).failed == 3
    row = judge(INSTANCE, tally, [Strike(10.0, away_until=11.0)])
    assert (row.refused, row.failed, row.passed) == (2, 1, False)


def test_a_request_that_is_in_no_list_is_a_failure() -> None:
    row = judge(INSTANCE, Tally(2, [Answer(0.0, 1.0, "i", 1)]), [])

    assert (row.sent, row.right, row.failed, row.passed) == (2, 1, 1, False)


def test_a_run_without_a_single_answer_has_not_passed() -> None:
    assert not judge(INSTANCE, Tally(), []).passed


def test_the_next_answer_is_not_one_that_the_victim_had_given() -> None:
    answers = [
        Answer(0.0, 0.5, "old", 1), Answer(0.0, 1.1, "old", 1), Answer(0.9, 1.4, "new", 2),
    ]  # fmt: skip

    row = judge(INSTANCE, Tally(3, answers), [Strike(1.0, frozenset(["old"]))])

    assert row.next_answer_seconds == pytest.approx(0.4)
    assert row.slowest_seconds == pytest.approx(1.1)
    assert row.again_count == 1


def test_an_answer_by_a_version_that_was_replaced_before_it_was_asked_is_wrong() -> None:
    changes = [
        Strike(10.0, changed_at=11.0, version="2"), Strike(20.0, changed_at=21.0, version="1"),
    ]  # fmt: skip
    right = [
        Answer(10.9, 12.0, "i", 1, "1"), Answer(10.5, 10.9, "i", 1, "2"),
        Answer(19.0, 20.5, "i", 1, "1"), Answer(19.0, 20.5, "i", 1, "2"),
        Answer(21.1, 21.2, "i", 1, "1"),
    ]  # fmt: skip
    wrong = [Answer(11.1, 19.0, "i", 1, "1"), Answer(21.1, 21.2, "i", 1, "2")]

    row = judge(SCENARIOS["rollback"], Tally(7, right + wrong), changes)

    assert (row.sent, row.right, row.wrong, row.failed, row.passed) == (7, 5, 2, 0, False)
    assert row.troubles[0] == "at 11.100: answered by version 1 after `use` of 2"


def test_a_gate_closes_once_the_request_in_hand_is_answered_and_holds_the_next() -> None:
    gate, in_hand, answered, asked = Gate(1), Event(), Event(), list[int]()

    def client() -> None:
        while gate.pass_through():
            asked.append(1)
            in_hand.set()
            answered.wait(60)

    threads = [Thread(target=client), Thread(target=gate.close)]
    threads[0].start()
    in_hand.wait(60)
    threads[1].start()
    threads[1].join(0.1)
    assert threads[1].is_alive()
    answered.set()
    threads[1].join(60)
    assert (asked, threads[1].is_alive()) == ([1], False)
    gate.open()
    wait_until(lambda: len(asked) > 1, 10, "it goes on")
    gate.close()
    gate.end()
    threads[0].join(60)
    assert not threads[0].is_alive()


def test_arguments_choose_rows_and_lengths() -> None:
    assert parse_arguments([]) == (list(SCENARIOS), Plan())
    assert parse_arguments(["api", "--seconds", "5", "--quick"]) == (["api"], Plan(5.0, True))
    with pytest.raises(SystemExit):
        parse_arguments(["earthquake"])


def test_a_quick_run_strikes_every_row_at_least_once() -> None:
    assert {Plan(quick=True).times(row) for row in SCENARIOS.values()} == {10, 5, 2, 1}
