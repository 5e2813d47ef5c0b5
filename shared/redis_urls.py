"""What a REDIS_URL says, read whole: redis-py takes what is wrong in one for something else.

redis://[user:password@]host[:port][/db][?option=value]     rediss:// with TLS
unix://[user:password@]/path/of/the/socket[?db=0]
redis+sentinel://[user:password@]host[:port],host2[:port]/service[/db]     rediss+sentinel://
redis+cluster://[user:password@]host[:port],host2[:port]     rediss+cluster://
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

SCHEMES = (
    "redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster",
    "rediss+cluster",
)  # fmt: skip
REDIS_PORT, SENTINEL_PORT, LAST_PORT = 6379, 26379, 65535


def _whole(value: str) -> int:
    if not re.fullmatch(r"\d{1,9}", value):
        raise ValueError("must be a whole number")
    return int(value)


def _switch(value: str) -> bool:
    if value.lower() not in {"0", "1", "false", "true", "no", "yes"}:
        raise ValueError("must be true or false")
    return value.lower() in {"1", "true", "yes"}


def _certificates(value: str) -> str:
    if value not in {"none", "optional", "required"}:
        raise ValueError("must be none, optional or required")
    return value


_TLS: dict[str, Callable[[str], Any]] = {
    "ssl_ca_certs": str,
    "ssl_ca_path": str,
    "ssl_certfile": str,
    "ssl_keyfile": str,
    "ssl_password": str,
    "ssl_cert_reqs": _certificates,
    "ssl_check_hostname": _switch,
}
_OPTIONS: dict[str, Callable[[str], Any]] = {"db": _whole, "client_name": str}
_OF_SENTINELS: dict[str, Callable[[str], Any]] = {
    "sentinel_username": str,
    "sentinel_password": str,
}
"""Time limits and the protocol are Ferry's own: they are no options."""


@dataclass(frozen=True)
class RedisUrl:
    """A URL's parts, as redis-py's constructors take them.

    `hosts` are the Sentinels of `service`, nodes of a `cluster`, else the one server; none with the
    `path` of a socket.
    `options` are those of connections to the server, `of_sentinels` user and password of theirs.
    """

    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    service: str = ""
    cluster: bool = False
    tls: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    of_sentinels: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, url: str) -> RedisUrl:
        """Read a URL; raises ValueError, which says what must be otherwise."""
        scheme, separator, _ = url.partition("://")
        if not separator or scheme not in SCHEMES:
            raise ValueError(f"must start with {', '.join(f'{each}://' for each in SCHEMES)}")
        parts = urlsplit(url)
        if parts.fragment or "#" in url:
            raise ValueError("must have no '#'; in a password it is written %23")
        user, address = _user(parts.netloc)
        sentinel, cluster = scheme.endswith("+sentinel"), scheme.endswith("+cluster")
        tls = scheme.startswith("rediss")
        options = _options(parts.query, sentinel=sentinel, tls=tls)
        of_sentinels = {
            name.removeprefix("sentinel_"): options.pop(name)
            for name in _OF_SENTINELS
            if name in options
        }
        if scheme == "unix":
            return cls(path=_socket(address, parts.path), options=user | options)
        service, database = _path(parts.path, sentinel=sentinel)
        if cluster and (database | options).get("db"):
            raise ValueError("must name no database: a cluster has one, 0")
        if database and options.get("db", database["db"]) != database["db"]:
            raise ValueError(
                "names two databases, /{db} and ?db={}".format(options["db"], **database)
            )
        port = SENTINEL_PORT if sentinel else REDIS_PORT
        named = address.split(",") if sentinel or cluster else [address]
        hosts = tuple(_host(each, port) for each in named)
        given = user | ({} if cluster else database) | options
        return cls(hosts, "", service, cluster, tls, given, of_sentinels)


def store_urls(value: str) -> list[str]:
    """Return the URLs of body stores in a list with commas or spaces; raises ValueError."""
    found = [each for each in re.split(r"[,\s]+", value) if each]
    for url in found:
        parts = RedisUrl.of(url)
        if parts.cluster or parts.service:
            raise ValueError("each body store must be one server: redis://, rediss:// or unix://")
    if len(set(found)) < len(found):
        raise ValueError("names a server twice")
    return found


def _user(netloc: str) -> tuple[dict[str, str], str]:
    """Return who connects, and where to."""
    who, _, address = netloc.rpartition("@")
    name, _, password = who.partition(":")
    named = {"username": unquote(name), "password": unquote(password)}
    return {key: value for key, value in named.items() if value}, address


def _socket(address: str, path: str) -> str:
    if address or not path.strip("/"):
        raise ValueError("must have the whole path of a socket behind unix://, so three slashes")
    return unquote(path)


def _host(text: str, usual_port: int) -> tuple[str, int]:
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.%\w]+\]|[^:\[\]\s/]*)(?::(.*))?", text)
    if not found:
        raise ValueError(f"{text!r} is no host, or host:port")
    host, port = found[1].strip("[]") or "localhost", found[2]
    if port is None:
        return host, usual_port
    if not re.fullmatch(r"\d{1,5}", port) or not 0 < int(port) <= LAST_PORT:
        raise ValueError(f"the port {port!r} must be a number from 1 to {LAST_PORT}")
    return host, int(port)


def _path(path: str, *, sentinel: bool) -> tuple[str, dict[str, int]]:
    """Return the service that Sentinels watch, if that is asked for, and the database."""
    names = [unquote(each) for each in path.strip("/").split("/")] if path.strip("/") else []
    service = names.pop(0) if sentinel and names else ""
    if sentinel and not service:
        raise ValueError("must name the service that the Sentinels watch: ...:26379/mymaster")
    if not names:
        return service, {}
    if len(names) > 1 or not re.fullmatch(r"\d{1,9}", names[0]):
        raise ValueError(f"the database {'/'.join(names)!r} must be a number, as in :6379/0")
    return service, {"db": int(names[0])}


def _options(query: str, *, sentinel: bool, tls: bool) -> dict[str, Any]:
    known = _OPTIONS | (_TLS if tls else {}) | (_OF_SENTINELS if sentinel else {})
    found: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in _TLS and not tls:
            raise ValueError(f"{name} needs TLS: begin with rediss")
        if name not in known:
            raise ValueError(f"the option {name!r} must be one of {', '.join(known)}")
        try:
            found[name] = known[name](value)
        except ValueError as error:
            raise ValueError(f"the option {name}={value!r} {error}") from error
    return found
