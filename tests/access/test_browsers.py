"""`Host`, `Origin` and `Sec-Fetch-Site`: what a browser may send, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from api.access.browsers import Browsers
from shared.errors import BadRequest, FerryError, ForeignPage, UnknownHost
from shared.settings import Settings


def check(settings: Settings, host: str | None, method: str = "GET", **headers: str) -> None:
    environ: dict[str, Any] = {"REQUEST_METHOD": method, "SERVER_PROTOCOL": "HTTP/1.1", **headers}
    if host is not None:
        environ["HTTP_HOST"] = host
    Browsers(settings).check(environ)


LOOPBACK = Settings()
OPEN = Settings(host="0.0.0.0")
NAMED = Settings(hosts="ferry.example.org,.internal.example,10.0.0.7")


@pytest.mark.parametrize(
    ("settings", "host"),
    [
        (LOOPBACK, "localhost"),
        (LOOPBACK, "LocalHost:8000"),
        (LOOPBACK, "localhost.:8000"),
        (LOOPBACK, "127.0.0.1"),
        (LOOPBACK, "127.9.9.9:1"),
        (LOOPBACK, "[::1]:8000"),
        (LOOPBACK, "[0:0:0:0:0:0:0:1]"),
        (LOOPBACK, "[::ffff:127.0.0.1]"),
        (OPEN, "192.168.1.5:8000"),
        (OPEN, "[fe80::1]"),
        (NAMED, "FERRY.example.org:443"),
        (NAMED, "ferry.example.org."),
        (NAMED, "a.b.internal.example"),
        (NAMED, "10.0.0.7"),
        (Settings(hosts="*"), "anything.example"),
        (Settings(host="127.0.0.1", hosts="ferry"), "ferry"),
    ],
)
def test_names_and_addresses_of_this_server_are_taken(settings: Settings, host: str) -> None:
    check(settings, host)


@pytest.mark.parametrize(
    ("settings", "host", "error"),
    [
        (LOOPBACK, "evil.example", UnknownHost),
        (LOOPBACK, "localhost.evil.example", UnknownHost),
        (LOOPBACK, "evil.localhost", UnknownHost),
        (LOOPBACK, "127.0.0.1.evil.example", UnknownHost),
        (LOOPBACK, "127.0.0.1.nip.io:8000", UnknownHost),
        (LOOPBACK, "192.168.1.5", UnknownHost),
        (LOOPBACK, "2130706433", UnknownHost),
        (LOOPBACK, "0x7f.1", UnknownHost),
        (LOOPBACK, "[fe80::1]", UnknownHost),
        (LOOPBACK, "localhost..", UnknownHost),
        (OPEN, "evil.example", UnknownHost),
        (NAMED, "example.org", UnknownHost),
        (NAMED, "evilferry.example.org", UnknownHost),
        (NAMED, "internal.example", UnknownHost),
        (NAMED, "evilinternal.example", UnknownHost),
        (LOOPBACK, None, BadRequest),
        (LOOPBACK, "", BadRequest),
        (LOOPBACK, "localhost,localhost", BadRequest),
        (LOOPBACK, "localhost:", BadRequest),
        (LOOPBACK, "localhost:80a", BadRequest),
        (LOOPBACK, "localhost:999999", BadRequest),
        (LOOPBACK, "user@localhost", BadRequest),
        (LOOPBACK, "localhost/evil.example", BadRequest),
        (LOOPBACK, "localhost#.evil.example", BadRequest),
        (LOOPBACK, "::1", BadRequest),
        (LOOPBACK, " localhost", BadRequest),
        (LOOPBACK, "localhost\n", BadRequest),
        (LOOPBACK, "\uff4cocalhost", BadRequest),
    ],
)  # fmt: skip
def test_other_names_are_refused(
    settings: Settings, host: str | None, error: type[FerryError]
) -> None:
    with pytest.raises(error):
        check(settings, host)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://localhost:8000", "localhost:8000"),
        ("http://LOCALHOST:8000", "localhost:8000"),
        ("http://localhost", "localhost:80"),
        ("http://localhost:80", "localhost"),
        ("https://ferry.example.org", "ferry.example.org"),
        ("https://ferry.example.org", "ferry.example.org:443"),
        ("http://[::1]:8000", "[::1]:8000"),
    ],
)
def test_a_page_of_this_server_may_send(origin: str, host: str) -> None:
    check(NAMED, host, "POST", HTTP_ORIGIN=origin, HTTP_SEC_FETCH_SITE="same-origin")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "post", "FOO"])
@pytest.mark.parametrize(
    "headers",
    [
        {"HTTP_ORIGIN": "http://evil.example"},
        {"HTTP_ORIGIN": "null"},
        {"HTTP_ORIGIN": ""},
        {"HTTP_ORIGIN": "http://localhost:3000"},
        {"HTTP_ORIGIN": "http://127.0.0.1:8000"},
        {"HTTP_ORIGIN": "http://localhost:8000.evil.example"},
        {"HTTP_ORIGIN": "http://localhost:8000@evil.example"},
        {"HTTP_ORIGIN": "http://localhost:8000,http://localhost:8000"},
        {"HTTP_ORIGIN": "http://localhost:x"},
        {"HTTP_ORIGIN": "file://localhost:8000"},
        {"HTTP_ORIGIN": "http://localhost:8000/evil"},
        {"HTTP_SEC_FETCH_SITE": "cross-site"},
        {"HTTP_SEC_FETCH_SITE": "Cross-Site", "HTTP_ORIGIN": "http://localhost:8000"},
    ],
)
def test_a_foreign_page_may_change_nothing(method: str, headers: dict[str, str]) -> None:
    with pytest.raises(ForeignPage):
        check(LOOPBACK, "localhost:8000", method, **headers)
    check(LOOPBACK, "localhost:8000", "GET", **headers)


def test_old_programs_send_no_host() -> None:
    Browsers(LOOPBACK).check({"REQUEST_METHOD": "POST", "SERVER_PROTOCOL": "HTTP/1.0"})
