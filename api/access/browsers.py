"""What a browser may not do: ask under a foreign name, or have a foreign page change something.

A page of another site cannot read what it has a browser send here, but it can send. And a page
whose name was made to point at this machine (DNS rebinding) is none of another site to the browser:
that name stands in `Host`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from shared.access.addresses import address_of, is_loopback
from shared.errors import BadRequest, ForeignPage, UnknownHost
from shared.settings import Settings

HOST_FIELD = re.compile(
    r"(\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._~-]+)?\]|[A-Za-z0-9._-]+)(?::(\d{1,5}))?", re.A
)
READING = frozenset({"GET", "HEAD", "OPTIONS"})
PORTS = {"http": "80", "https": "443"}
LONGEST_SHOWN = 100
HEADERS = (
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
)
"""On every answer; a page has a policy of its own."""


class Named(NamedTuple):
    """A `Host`, as it is compared: in lower case, without a dot at its end."""

    name: str
    port: str


class Browsers:
    """Checks what only browsers do wrong, by the settings."""

    def __init__(self, settings: Settings) -> None:
        """Allow loopback names, FERRY_HOSTS, and addresses where others than this machine ask."""
        self._names = {name.strip() for name in settings.hosts.split(",")} - {""}
        self._parents = tuple(name for name in self._names if name.startswith("."))
        self._is_open = not is_loopback(settings.host)
        self._own = settings.host.lower()

    def check(self, environ: Mapping[str, Any]) -> None:
        """Raise BadRequest, UnknownHost or ForeignPage for a request, WSGI's."""
        host = environ.get("HTTP_HOST")
        named = None if host is None else self.check_host(host)
        if host is None and environ.get("SERVER_PROTOCOL") != "HTTP/1.0":
            raise BadRequest("the request has no Host")
        if environ["REQUEST_METHOD"] in READING:
            return
        if environ.get("HTTP_SEC_FETCH_SITE", "").strip().lower() == "cross-site":
            raise ForeignPage("a page of another site may not have this sent (Sec-Fetch-Site)")
        origin = environ.get("HTTP_ORIGIN")
        if origin is not None and not _is_same(origin, named):
            raise ForeignPage(
                f"a page of {origin[:LONGEST_SHOWN]!r} may not have this sent: that is not the "
                "request's own Host"
            )

    def check_host(self, host: str) -> Named:
        """Return a header's host; raises BadRequest or UnknownHost."""
        found = HOST_FIELD.fullmatch(host)
        if found is None:
            raise BadRequest(f"Host {host[:LONGEST_SHOWN]!r} is none")
        name = found[1].lower().removesuffix(".")
        if not self._is_known(name):
            raise UnknownHost(
                f"Host {name[:LONGEST_SHOWN]!r} is no name of this server: FERRY_HOSTS has them"
            )
        return Named(name, found[2] or "")

    def _is_known(self, name: str) -> bool:
        if name == "localhost" or "*" in self._names:
            return True
        address = address_of(name.strip("[]"))
        if address is not None:
            # No name can be made to point at us that is an address already.
            return self._is_open or address.is_loopback or str(address) in self._names
        return name == self._own or name in self._names or name.endswith(self._parents)


def _is_same(origin: str, host: Named | None) -> bool:
    """Tell whether an `Origin` is the host that was asked; one without a host, as null, is not."""
    try:
        parts = urlsplit(origin)
        port = str(parts.port or "")
    except ValueError:
        return False
    usual = PORTS.get(parts.scheme)
    found = HOST_FIELD.fullmatch(parts.netloc)
    if host is None or usual is None or found is None or parts.path or parts.query:
        return False
    name = found[1].lower().removesuffix(".")
    return (name, port or usual) == (host.name, host.port or usual)
