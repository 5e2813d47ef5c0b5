"""/openapi.json in tests: read without a server, and held against answers."""

from __future__ import annotations

from functools import cache
from typing import Any

from flask import Flask
from jsonschema_rs import Draft202012Validator
from werkzeug.test import TestResponse

from api.app import create_app
from shared.settings import Settings

METHODS = {"get", "put", "post", "delete", "patch"}


@cache
def application() -> Flask:
    """Return an application that is never asked for more than its routes: it opens nothing."""
    return create_app(Settings(redis_url="redis://nowhere.invalid"))


@cache
def document() -> dict[str, Any]:
    response = application().test_client().get("/openapi.json")
    assert response.status_code == 200
    found: dict[str, Any] = response.get_json()
    return found


def operations() -> list[tuple[str, str, dict[str, Any]]]:
    """Return method, path and description of everything that can be asked."""
    return [
        (method.upper(), path, item[method])
        for path, item in document()["paths"].items()
        for method in item.keys() & METHODS
    ]


def check_answer(method: str, path: str, response: TestResponse) -> None:
    """Fail unless the document says that this may be the answer."""
    described = document()["paths"][path][method.lower()]["responses"]
    assert str(response.status_code) in described, response.text
    content = described[str(response.status_code)]["content"]
    assert response.mimetype in content
    if response.mimetype == "application/json":
        schema = content[response.mimetype]["schema"]
        whole = {**schema, "components": document()["components"]}
        Draft202012Validator(whole).validate(response.get_json())
