"""Asks the API of this very machine, past any proxy."""

from __future__ import annotations

import json
from http import HTTPStatus
from http.client import HTTPException
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from shared.settings import Settings

PROBE_TIMEOUT_SECONDS = 2.0
# subtle: urllib would ask the proxy of http_proxy for addresses of this very machine.
_DIRECT = build_opener(ProxyHandler({}))
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


class Answer(NamedTuple):
    """An HTTP answer; status 0 when there was none."""

    status: int
    body: bytes

    @property
    def is_good(self) -> bool:
        """Tell whether it is a 2xx."""
        return HTTPStatus.OK <= self.status < HTTPStatus.MULTIPLE_CHOICES


def api_url(settings: Settings) -> str:
    """Return the API's address as this machine reaches it."""
    return f"http://{reached(settings.host)}:{settings.port}"


def reached(host: str) -> str:
    """Return a host to listen on as an address that reaches it."""
    found = _EVERYWHERE.get(host, host)
    return f"[{found}]" if ":" in found else found


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
