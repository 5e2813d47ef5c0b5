"""Requests to a real server, answered as the responses that Flask's test client gives."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http.client import HTTPConnection
from typing import Any

from werkzeug.datastructures import Headers
from werkzeug.test import EnvironBuilder, TestResponse


def send(
    port: int,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> TestResponse:
    """Send one request on a connection of its own; without more, it asks for no compression."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, dict(headers or {}))
        reply = connection.getresponse()
        content = reply.read()
        request = EnvironBuilder(path).get_request()
        status = f"{reply.status} {reply.reason}"
        return TestResponse([content], status, Headers(reply.getheaders()), request)
    finally:
        connection.close()


def post(port: int, path: str, body: Any, headers: Mapping[str, str] | None = None) -> TestResponse:
    """Post bytes as they are, anything else as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return send(port, "POST", path, content, headers)


def get(port: int, path: str, headers: Mapping[str, str] | None = None) -> TestResponse:
    return send(port, "GET", path, None, headers)
