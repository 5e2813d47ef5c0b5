"""Flask's responses and its JSON, both by orjson."""

from __future__ import annotations

from typing import Any

import orjson
from flask import Response
from flask.json.provider import JSONProvider

from api.infer.answer import OPTIONS, Headers, HttpAnswer, json_answer


def response_of(answer: HttpAnswer) -> Response:
    """Return an answer as Flask's response."""
    return Response(answer.body, answer.status, answer.headers, content_type=answer.content_type)


def json_response(body: Any, status: int = 200, headers: Headers = ()) -> Response:
    """Return `body` as JSON, see `json_answer`."""
    return response_of(json_answer(body, status, headers))


class OrjsonProvider(JSONProvider):
    """The JSON of Flask itself."""

    def dumps(self, obj: Any, **_: Any) -> str:
        """Encode."""
        return orjson.dumps(obj, option=OPTIONS).decode()

    def loads(self, s: str | bytes, **_: Any) -> Any:
        """Decode; raises ValueError."""
        return orjson.loads(s)
