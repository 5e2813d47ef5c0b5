"""One request put many times at once, so that its copies are seen to share batches.

A browser opens six connections to a server and no more, so that of a hundred requests which it
sends itself six would wait at a time.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from shared.errors import BadRequest

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication, WSGIEnvironment

MAX_SENT_AT_ONCE = 100
MAX_SENT_BYTES = 64 * 2**20
"""The most that all copies' bodies may have together."""
BURST_PATHS = ("/predict/", "/v2/models/", "/v1/")
LEFT_OUT = ("gunicorn.socket", "HTTP_ACCEPT_ENCODING", "HTTP_IDEMPOTENCY_KEY", "HTTP_PREFER")
"""What each copy does not take over: it has no connection, and is answered now and plainly."""


class Sent(NamedTuple):
    """One copy's answer: its status, seconds from sending to answer, and its body."""

    status: int
    seconds: float
    body: bytes


def send_copies(
    app: WSGIApplication, environ: WSGIEnvironment, target: str, body: bytes, count: int
) -> list[Sent]:
    """Put `body` to the path and query `target` of `app`, `count` times at once.

    Each copy is a request like any other, with the headers of `environ`: it is checked, counted and
    refused as such. Raises BadRequest.
    """
    path, _, query = target.partition("?")
    if not path.startswith(BURST_PATHS):
        raise BadRequest(f"to={target!r}: requests to models begin with one of {list(BURST_PATHS)}")
    if not 1 <= count <= MAX_SENT_AT_ONCE or count * len(body) > MAX_SENT_BYTES:
        raise BadRequest(
            f"count={count}: from 1 to {MAX_SENT_AT_ONCE} copies are sent, "
            f"of {MAX_SENT_BYTES} bytes together"
        )
    kept = {name: value for name, value in environ.items() if _is_kept(name)}
    changes = {"REQUEST_METHOD": "POST", "PATH_INFO": path, "QUERY_STRING": query}
    one = kept | changes | {"CONTENT_LENGTH": str(len(body))}
    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(lambda _: _send(app, one, body), range(count)))


def as_json(answers: list[Sent]) -> list[dict[str, Any]]:
    """Return each answer's status, seconds, timings and error."""
    return [_described(sent) for sent in answers]


def _is_kept(name: str) -> bool:
    ours = name.startswith(("HTTP_", "SERVER_", "REMOTE_")) or name.startswith("wsgi.")
    return (ours or name in ("CONTENT_TYPE", "SCRIPT_NAME")) and name not in LEFT_OUT


def _send(app: WSGIApplication, environ: WSGIEnvironment, body: bytes) -> Sent:
    statuses: list[str] = []

    def start_response(status: str, *_: Any) -> Any:
        statuses.append(status)

    began = time.monotonic()
    answered = app({**environ, "wsgi.input": BytesIO(body)}, start_response)
    content = b"".join(answered)
    close = getattr(answered, "close", None)
    if close is not None:
        close()
    return Sent(int(statuses[-1].split()[0]), time.monotonic() - began, content)


def _described(sent: Sent) -> dict[str, Any]:
    answer = {"status": sent.status, "seconds": round(sent.seconds, 6), "timings": {}, "error": ""}
    try:
        found = orjson.loads(sent.body)
    except orjson.JSONDecodeError:  # an answer with binary outputs: its JSON stands in front
        found = {}
    if isinstance(found, dict):
        answer["timings"] = found.get("timings", {})
        answer["error"] = found.get("error", "")
    return answer
