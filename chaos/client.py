"""One steady client: asks, waits, checks, asks again, over one connection that is kept alive."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, RemoteDisconnected
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator

from chaos.questions import FIRST_VERSION, Questions, answer_of, is_right
from shared.datatypes import Array

ANSWER_TIMEOUT_SECONDS = 60.0
"""Longer than any deadline of the server's: a request that it lost is seen as such."""
GIVE_UP_SECONDS = 30.0
"""How long a request that is refused is asked again."""
RECONNECT_SECONDS = 0.1
OK, UNAVAILABLE = 200, 503


class Answer(NamedTuple):
    """A right answer; times are monotonic seconds, which all processes of a machine share.

    `version` is the one that says that it gave it.
    """

    sent_at: float
    received_at: float
    instance: str
    attempts: int
    version: str = FIRST_VERSION


class Trouble(NamedTuple):
    """What came instead of a right answer."""

    sent_at: float
    text: str


@dataclass
class Tally:
    """What became of the requests: each of `sent` is in exactly one of the first three lists.

    A refusal is a 503 that names a time to ask again, or a port where nobody listens; the client
    asks again: it is no end of a request. `reconnected` counts connections that were closed between
    two requests.
    """

    sent: int = 0
    answers: list[Answer] = field(default_factory=list)
    failures: list[Trouble] = field(default_factory=list)
    wrong: list[Trouble] = field(default_factory=list)
    refusals: list[Trouble] = field(default_factory=list)
    reconnected: int = 0

    def add(self, other: Tally) -> None:
        """Take in what another client counted."""
        self.sent += other.sent
        self.answers += other.answers
        self.failures += other.failures
        self.wrong += other.wrong
        self.refusals += other.refusals
        self.reconnected += other.reconnected


class Refused(Exception):
    """The server asks to come again after some seconds."""

    def __init__(self, text: str, after_seconds: float) -> None:
        """Hold what it said."""
        super().__init__(text)
        self.after_seconds = after_seconds


class Failed(Exception):
    """The request has no answer, or an error for one."""


class Client:
    """Asks and counts in `tally` while `may_ask`, which may take its time, says so."""

    def __init__(
        self, number: int, port: int, model: str, questions: Questions, may_ask: Callable[[], bool]
    ) -> None:
        """Connect at the first request."""
        self.tally = Tally()
        self._number = number
        self._random: Generator = np.random.default_rng(number)
        self._path = f"/v2/models/{model}/infer"
        self._questions = questions
        self._may_ask = may_ask
        self._connection = HTTPConnection("127.0.0.1", port, timeout=ANSWER_TIMEOUT_SECONDS)

    def run(self) -> None:
        """Ask one request after the other."""
        while self._may_ask():
            self._ask_until_answered()
        self._connection.close()

    def _ask_until_answered(self) -> None:
        """Send one request, again after each refusal, and count it once."""
        row, expected = self._questions.ask(self._random)
        request_id = f"{self._number}-{self.tally.sent}"
        body = self._body(request_id, row)
        self.tally.sent += 1
        sent_at = started = time.monotonic()
        while True:
            try:
                reply = self._exchange(body)
            except Refused as refusal:
                self.tally.refusals.append(Trouble(sent_at, str(refusal)))
                if time.monotonic() - started > GIVE_UP_SECONDS:
                    self.tally.failures.append(Trouble(started, f"refused to the end: {refusal}"))
                    return
                time.sleep(refusal.after_seconds)
                sent_at = time.monotonic()
            except Failed as failure:
                self.tally.failures.append(Trouble(sent_at, str(failure)))
                return
            else:
                self._check(reply, request_id, expected, sent_at)
                return

    def _body(self, request_id: str, row: Array) -> bytes:
        tensor = {
            "name": self._questions.input_name, "datatype": "FP32", "shape": list(row.shape),
            "data": row.ravel().tolist(),
        }  # fmt: skip
        return json.dumps({"id": request_id, "inputs": [tensor]}).encode()

    def _check(self, reply: Any, request_id: str, expected: Array, sent_at: float) -> None:
        """Count an answer as right or wrong; one to another request has another id."""
        try:
            data, timings = reply["outputs"][0]["data"], reply["timings"]
            version = reply["model_version"]
            if reply["id"] == request_id and is_right(data, answer_of(version, expected)):
                instance, attempts = timings["instance"], timings["attempts"]
                answer = Answer(sent_at, time.monotonic(), instance, attempts, version)
                self.tally.answers.append(answer)
                return
        except (LookupError, TypeError, ValueError):
            pass  # it has another form than an answer
        text = f"asked {request_id}, wanted {expected.tolist()}, got {reply}"
        self.tally.wrong.append(Trouble(sent_at, text[:500]))

    def _exchange(self, body: bytes) -> Any:
        """Return the JSON of a 200; raises Refused or Failed."""
        try:
            status, after, text = self._send(body)
        except ConnectionRefusedError as error:  # nobody listens, so nobody accepted anything
            self._connection.close()
            raise Refused(repr(error), RECONNECT_SECONDS) from error
        except (OSError, HTTPException) as error:
            self._connection.close()
            raise Failed(repr(error)) from error
        if status == UNAVAILABLE and after is not None:
            raise Refused(text.decode(errors="replace"), float(after))
        if status != OK:
            raise Failed(f"{status} {text.decode(errors='replace')}")
        try:
            return json.loads(text)
        except ValueError as error:
            raise Failed(f"200 without JSON: {text[:100]!r}") from error

    def _send(self, body: bytes) -> tuple[int, str | None, bytes]:
        """Exchange one request, once more where the connection was closed since its last answer.

        Every HTTP client does that: a server may close a connection that is kept alive at any
        time, and this one closed it before a byte of an answer came (RFC 9112, 9.3.1).
        """
        kept_alive = self._connection.sock is not None
        try:
            return self._send_once(body)
        except (RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            self._connection.close()
            if not kept_alive:
                raise
        self.tally.reconnected += 1
        return self._send_once(body)

    def _send_once(self, body: bytes) -> tuple[int, str | None, bytes]:
        headers = {"Content-Type": "application/json"}
        self._connection.request("POST", self._path, body, headers)
        response = self._connection.getresponse()
        return response.status, response.getheader("Retry-After"), response.read()
