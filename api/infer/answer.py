"""JSON by orjson: three times the standard library's speed, and numpy arrays without a copy."""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson
from flask import Response
from flask.json.provider import JSONProvider

OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
JSON_TYPE = "application/json"
Headers = tuple[tuple[str, str], ...]


class HttpAnswer(NamedTuple):
    """An answer that is not Flask's yet, so that it can also be given without Flask."""

    status: int
    headers: Headers
    body: bytes
    content_type: str = JSON_TYPE

    def response(self) -> Response:
        """Return it as Flask's."""
        return Response(self.body, self.status, self.headers, content_type=self.content_type)


def json_answer(body: Any, status: int = 200, headers: Headers = ()) -> HttpAnswer:
    """Return `body` as JSON. NaN and infinities become null: JSON has no word for them."""
    return HttpAnswer(status, headers, orjson.dumps(body, option=OPTIONS))


def json_response(body: Any, status: int = 200, headers: Headers = ()) -> Response:
    """Return `body` as JSON, see `json_answer`."""
    return json_answer(body, status, headers).response()


class OrjsonProvider(JSONProvider):
    """What Flask itself uses for JSON."""

    def dumps(self, obj: Any, **_: Any) -> str:
        """Encode."""
        return orjson.dumps(obj, option=OPTIONS).decode()

    def loads(self, s: str | bytes, **_: Any) -> Any:
        """Decode; raises ValueError."""
        return orjson.loads(s)
