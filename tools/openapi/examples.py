"""Real requests and the sample models' real answers, recorded in examples.json."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple


class Example(NamedTuple):
    """One request to `path`, whose variables and the query are `parameters`, and its answer.

    The body is either `body`, which is JSON, or `picture`, which is base64.
    """

    summary: str
    method: str
    path: str
    parameters: Mapping[str, Any]
    status: int
    answer: Any
    body: Any = None
    picture: str = ""

    @property
    def media_type(self) -> str:
        """Return the media type of the request's body."""
        return "image/*" if self.picture else "application/json"

    def of(self, method: str, path: str) -> bool:
        """Tell whether it shows this operation."""
        return (self.method, self.path) == (method, path)

    def raw(self) -> bytes:
        """Return the request's body as it is sent."""
        if self.picture:
            return base64.b64decode(self.picture)
        return b"" if self.body is None else json.dumps(self.body).encode()

    def request(self) -> dict[str, Any]:
        """Return the request's body as OpenAPI's example object."""
        if self.picture:
            url = f"data:image/png;base64,{self.picture}"
            return {"summary": self.summary, "externalValue": url}
        return {"summary": self.summary, "value": self.body}


@cache
def examples() -> Mapping[str, Example]:
    """Return all examples by name."""
    text = files("tools.openapi").joinpath("examples.json").read_text("utf-8")
    return {name: Example(**values) for name, values in json.loads(text).items()}
