"""Says what can be called as soon as it can: the addresses, each model, and when all is ready."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from shared.settings import Settings

PROBE_TIMEOUT_SECONDS = 2.0
FIRST_COMPLAINT_SECONDS = 15.0
# Between probes: quick at first, slower the longer it takes.
QUICK_SECONDS, SLOW_SECONDS, GROWTH = 0.1, 1.0, 1.1
MODELS_A_LINE = 8
"""Models that one line names; the others are counted."""
WAITING = {"unloaded", "no worker has loaded it"}
"""The index's reasons of models that nobody tried to load: `shared.registry.repository_index`."""
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
# subtle: urllib would ask the proxy of http_proxy for addresses of this very machine.
_DIRECT = build_opener(ProxyHandler({}))


class Console(Protocol):
    """Prints lines for the operator, until everything is `stopping`."""

    stopping: bool

    def say(self, line: str) -> None:
        """Print one line."""


class Answer(NamedTuple):
    """An HTTP answer; status 0 when there was none."""

    status: int
    body: bytes

    @property
    def is_good(self) -> bool:
        """Tell whether it is a 2xx."""
        return HTTPStatus.OK <= self.status < HTTPStatus.MULTIPLE_CHOICES


class Announcer:
    """Follows a start: complains while the API is silent, then tells each model's fate once."""

    def __init__(self, settings: Settings, console: Console, start: float) -> None:
        """Report to `console`; `start` is the time.monotonic() that "ready in" counts from."""
        self._settings, self._console, self._start = settings, console, start
        self._url = api_url(settings)
        self._complain_at = start + FIRST_COMPLAINT_SECONDS
        self._said: set[str] = set()

    def run(self) -> None:
        """Say everything until all models are ready; returns early when all is stopping."""
        self._wait_for_api()
        for line in addresses(self._settings):
            self._say_once(line)
        pause_seconds, ready = QUICK_SECONDS, False
        while not ready and not self._console.stopping:
            ready = ask(f"{self._url}/v2/health/ready").is_good
            index = self._say_models()
            if ready:
                self._say_ready(index)
                return
            self._complain(f"models not ready: {_named(_not_ready(index))}")
            time.sleep(pause_seconds)
            pause_seconds = min(pause_seconds * GROWTH, SLOW_SECONDS)

    def _wait_for_api(self) -> None:
        while not ask(f"{self._url}/v2/health/live").is_good and not self._console.stopping:
            self._complain(f"the API does not answer at {self._url}")
            time.sleep(QUICK_SECONDS)

    def _complain(self, what: str) -> None:
        now = time.monotonic()
        if now > self._complain_at:
            self._console.say(f"not ready after {now - self._start:.0f} s: {what}; still waiting")
            self._complain_at = now + 2 * (now - self._start)

    def _say_models(self) -> list[dict[str, str]]:
        """Say which models became ready or failed since the last look; return all of them."""
        index = repository_index(self._url)
        for entry in index:
            name, reason = entry["name"], entry.get("reason", "")
            if entry["state"] == "READY":
                self._say_once(
                    f"{name:<10} {self._url}/v2/models/{name}  POST {self._url}/predict/{name}"
                )
            elif entry["state"] == "UNAVAILABLE" and reason and reason not in WAITING:
                self._say_once(f"{name:<10} NOT READY: {reason}")
        return index

    def _say_once(self, line: str) -> None:
        if line not in self._said and not self._console.stopping:
            self._said.add(line)
            self._console.say(line)

    def _say_ready(self, index: list[dict[str, str]]) -> None:
        idle = _not_ready(index)
        beside = f"; not loaded: {_named(idle)}" if idle else ""
        self._say_once(f"ready in {time.monotonic() - self._start:.1f} s{beside}")


def _not_ready(index: list[dict[str, str]]) -> list[str]:
    ready = {entry["name"] for entry in index if entry["state"] == "READY"}
    return sorted({entry["name"] for entry in index} - ready)


def _named(names: list[str]) -> str:
    more = f" and {len(names) - MODELS_A_LINE} more" if len(names) > MODELS_A_LINE else ""
    return (", ".join(names[:MODELS_A_LINE]) or "none is known yet") + more


def api_url(settings: Settings) -> str:
    """Return the API's address as this machine reaches it."""
    return f"http://{_reached(settings.host)}:{settings.port}"


def _reached(host: str) -> str:
    found = _EVERYWHERE.get(host, host)
    return f"[{found}]" if ":" in found else found


def addresses(settings: Settings) -> Iterator[str]:
    """Yield one line per server that can be opened, and one when there is nothing to serve."""
    yield f"API        {api_url(settings)}/v2"
    yield f"gRPC       {_reached(settings.host)}:{settings.grpc_port}"
    yield f"dashboard  http://127.0.0.1:{settings.dashboard_port}"
    repository = Path(settings.models)
    if not (any(repository.glob("*/config.pbtxt")) or any(repository.glob("*/[0-9]*"))):
        yield (
            f"no models  {repository} holds none yet: `ferry add FILE` puts one in, "
            "`ferry samples` makes some"
        )


def repository_index(url: str) -> list[dict[str, str]]:
    """Return every model version with its state as the API at `url` knows them, else nothing."""
    answer = ask(f"{url}/v2/repository/index", b"{}")
    found: list[dict[str, str]] = json.loads(answer.body) if answer.is_good else []
    return found


def ask(
    url: str, body: bytes | None = None, headers: dict[str, str] | None = None,
    timeout: float = PROBE_TIMEOUT_SECONDS,
) -> Answer:  # fmt: skip
    """GET `url`, or POST `body` to it; an answer that does not come has the status 0."""
    request = Request(url, body, headers or {})
    try:
        with _DIRECT.open(request, timeout=timeout) as answer:
            return Answer(answer.status, answer.read())
    except HTTPError as error:
        with error:
            return Answer(error.code, _body(error))
    except (OSError, HTTPException):
        return Answer(0, b"")


def _body(error: Any) -> bytes:
    try:
        body: bytes = error.read()
    except (OSError, HTTPException):
        return b""
    return body
