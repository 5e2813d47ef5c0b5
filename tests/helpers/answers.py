"""Reading the API's answers in tests, good ones and refusals."""

from __future__ import annotations

from typing import Any

from werkzeug.test import TestResponse


def answer(response: TestResponse) -> Any:
    """Return the JSON of a 200; fail the test for anything else."""
    assert response.status_code == 200, response.text
    assert response.mimetype == "application/json"
    return response.get_json()


def refusal(response: TestResponse, status: int = 400, code: str = "bad_request") -> str:
    """Return the message of a refusal, whose whole shape is checked."""
    assert response.status_code == status, response.text
    assert response.mimetype == "application/json"
    body = response.get_json()
    assert set(body) == {"error", "code"}
    assert body["code"] == code
    assert isinstance(body["error"], str) and body["error"]
    message: str = body["error"]
    return message
