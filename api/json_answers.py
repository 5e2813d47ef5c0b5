"""JSON by orjson: three times the standard library's speed, and numpy arrays without a copy."""

from __future__ import annotations

from typing import Any

import orjson
from flask import Response
from flask.json.provider import JSONProvider

OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return `body` as JSON. NaN and infinities become null: JSON has no word for them."""
    return Response(
        orjson.dumps(body, option=OPTIONS), status, headers, content_type="application/json"
    )


class OrjsonProvider(JSONProvider):
    """What Flask itself uses for JSON."""

    def dumps(self, obj: Any, **_: Any) -> str:
        """Encode."""
        return orjson.dumps(obj, option=OPTIONS).decode()

    def loads(self, s: str | bytes, **_: Any) -> Any:
        """Decode; raises ValueError."""
        return orjson.loads(s)
