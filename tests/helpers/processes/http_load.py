"""Clients of a model of `versioned_models`, each of whose answers must be right."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from threading import Event
from typing import Any, NamedTuple

from waiting import wait_until

CLIENTS = 4
X = [1.5, -2.0]
BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": X}]})
INFER = "/v2/models/m/infer"


class Answer(NamedTuple):
    """What came back, and the instance that gave it."""

    status: int
    said: dict[str, Any]
    instance: str
    location: str
    port: int

    @property
    def version(self) -> str:
        """Return the version that answered, whose answer it is."""
        assert self.status == 200, self.said
        version: str = self.said["model_version"]
        assert self.said["outputs"][0]["data"] == [int(version) * each for each in X]
        return version


class Client:
    """One connection to an API process."""

    def __init__(self, port: int) -> None:
        self.connection = HTTPConnection("127.0.0.1", port, timeout=90)

    def ask(self, method: str = "POST", path: str = INFER, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.connection.request(method, path, BODY if method == "POST" else None, named)
        response = self.connection.getresponse()
        found = re.search('instance;desc="(.*?)"', response.headers.get("Server-Timing", ""))
        return Answer(
            response.status, json.loads(response.read()), found[1] if found else "",
            response.headers.get("Location", ""), self.connection.port,
        )  # fmt: skip

    def close(self) -> None:
        self.connection.close()


@contextmanager
def load(*ports: int) -> Iterator[list[Answer]]:
    """Ask at each port, several at a time, while the block runs; then all must be answered right.

    Yields the answers, to which new ones are added.
    """
    stop, answers = Event(), list[Answer]()

    def ask(port: int) -> None:
        with closing(Client(port)) as client:
            while not stop.is_set():
                answer = client.ask()
                assert answer.version
                answers.append(answer)

    with ThreadPoolExecutor(CLIENTS) as pool:
        asking = [pool.submit(ask, ports[n % len(ports)]) for n in range(CLIENTS)]
        try:
            wait_until(lambda: answers or any(each.done() for each in asking), 30, "an answer")
            yield answers
        finally:
            stop.set()
        for each in asking:
            each.result(timeout=90)
