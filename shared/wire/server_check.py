"""Checks, once at the start of a process, that REDIS_URL names a server that Ferry works with."""

from __future__ import annotations

from secrets import token_hex
from typing import Any

import redis
from redis.exceptions import AuthenticationError, InvalidResponse, RedisError, ResponseError

from shared.errors import BadSetting
from shared.redis_urls import RedisUrl
from shared.settings import Settings
from shared.wire.client import connect, public_url, without_place
from shared.wire.cluster import NoCluster
from shared.wire.outage import lasts
from shared.wire.packing import Command
from shared.wire.scripts import script_digest, script_text
from shared.wire.tls import TlsFailed, speaks_plainly, speaks_tls
from shared.wire.wire import NO_REPLY, Wire, open_wire

OLDEST = (6, 2)
"""The oldest version whose commands suffice: GETDEL, and LPOP of several."""
PROBE_MS = 10_000
"""The life of a probe's keys, should they be left behind."""


def check_server(settings: Settings) -> list[str]:
    """Raise BadSetting in one sentence unless the server is one that Ferry can use.

    Return a sentence for each of its settings that is a risk to what Ferry promises. One that is
    away, or in a state that passes, is none of our business: who starts waits for it.
    """
    client = connect(settings.redis_url, settings.key_prefix)
    try:
        server = _Server(public_url(settings.redis_url), _introduction(client))
        server.check(in_cluster=RedisUrl.of(settings.redis_url).cluster)
        warnings = server.warnings()
        _probe(server, open_wire(client), settings)
    except (AuthenticationError, NoCluster) as error:
        raise BadSetting(f"REDIS_URL: {public_url(settings.redis_url)} says: {error}") from error
    except TlsFailed as error:
        _check_tls(settings.redis_url)
        raise BadSetting(f"REDIS_URL: {public_url(settings.redis_url)}: {error}") from error
    except InvalidResponse as error:
        where = public_url(settings.redis_url)
        raise BadSetting(f"REDIS_URL: what answers at {where} is no Redis: {error}") from error
    except RedisError:
        _check_tls(settings.redis_url)
        return []
    finally:
        client.close()
    return warnings


def _check_tls(redis_url: str) -> None:
    """Raise BadSetting where TLS is asked of a server without, or a server with TLS is not."""
    url = RedisUrl.of(redis_url)
    if len(url.hosts) != 1 or url.service or url.cluster:
        return
    if url.tls and speaks_plainly(*url.hosts[0]):
        advice = "speaks no TLS: name its port for TLS, or begin with redis://"
    elif not url.tls and speaks_tls(*url.hosts[0]):
        advice = "speaks TLS: begin with rediss://"
    else:
        return
    raise BadSetting(f"REDIS_URL: what listens at {public_url(redis_url)} {advice}")


def _introduction(client: redis.Redis) -> dict[str, Any]:
    """Return what the server says of itself, nothing where it does not let us ask."""
    try:
        found: dict[str, Any] = client.info()
    except ResponseError:
        return {}
    return found


class _Server:
    """A server's name, version and place, for sentences about it."""

    def __init__(self, where: str, said: dict[str, Any]) -> None:
        self._said = said
        name = "Valkey" if "valkey_version" in said else "Redis"
        version = said.get("valkey_version") or said.get("redis_version", "")
        self.described = f"{name} {version} at {where}".replace("  ", " ")

    def check(self, *, in_cluster: bool) -> None:
        """Raise BadSetting for a server that is too old, a Sentinel, or a part of a cluster."""
        mode = self._said.get("redis_mode") or self._said.get("server_mode")
        if mode == "sentinel":
            raise BadSetting(
                f"REDIS_URL: {self.described} is a Sentinel: name the service that it watches, "
                "redis+sentinel://host:26379/service"
            )
        if mode == "cluster" and not in_cluster:
            raise BadSetting(
                f"REDIS_URL: {self.described} is part of a cluster: name some of its nodes, "
                "redis+cluster://host:6379,host2:6379"
            )
        version = str(self._said.get("redis_version", ""))
        if version and _numbers(version) < OLDEST:
            raise BadSetting(
                f"REDIS_URL: {self.described} is older than {'.'.join(map(str, OLDEST))}, the "
                "oldest that Ferry works with: upgrade it, or unset REDIS_URL to have one embedded"
            )

        policy = self._said.get("maxmemory_policy", "noeviction")
        if policy != "noeviction" and self._said.get("maxmemory"):
            raise BadSetting(
                f"REDIS_URL: {self.described} may drop keys when its memory is full "
                f"(maxmemory-policy {policy}), and with them requests that were accepted: set "
                "maxmemory-policy noeviction"
            )

    def warnings(self) -> list[str]:
        """Return what the server may lose, and what it cannot do now."""
        found = []
        if self._said.get("role") == "slave":
            found.append(
                f"REDIS_URL: {self.described} is a replica and takes no writes: nothing is served "
                "before it is a master; name the master, or the Sentinels that know it"
            )
        if not self._said.get("aof_enabled", 1):
            found.append(
                f"REDIS_URL: {self.described} writes no append-only file: asynchronous requests "
                "and what operators asked for are lost when it ends; set appendonly yes"
            )
        return found

    def refuses(self, command: str, error: str) -> BadSetting:
        """Return the error for a command that this server does not take from us."""
        return BadSetting(
            f"REDIS_URL: {self.described} does not take {command}, which Ferry needs: "
            f"{without_place(error).strip()}"
        )


def _numbers(version: str) -> tuple[int, ...]:
    """Return a version's first two numbers; what has none is taken to be new."""
    parts = version.split(".")[:2]
    return tuple(map(int, parts)) if all(part.isdecimal() for part in parts) else OLDEST


def _probe(server: _Server, wire: Wire, settings: Settings) -> None:
    """Use every command once as an instance does; raises BadSetting, and RedisError."""
    names = [f"{settings.key_prefix}:{{start}}:{token_hex(4)}:{n}" for n in range(5)]
    commands: list[tuple[str, tuple[Command, ...]]] = [
        ("EVALSHA", (("EVALSHA", script_digest("probe"), len(names), *names, PROBE_MS),)),
        ("EVAL", (("EVAL", "return 1", 0),)),
        ("CLIENT ID", (("CLIENT", "ID"),)),
        ("CLIENT REPLY", (NO_REPLY, ("EXISTS", names[0]), ("EXISTS", names[0]))),
        ("BLPOP", (("BLPOP", names[0], 0.01),)),
        ("MGET", (("MGET", names[1], names[2]),)),
        ("PERSIST", (("PERSIST", names[1]),)),
    ]
    if settings.durable:
        commands.append(("WAITAOF (Redis has it from 7.2)", (("WAITAOF", 0, 0, 0),)))
    try:
        for name, command in [
            ("SCRIPT LOAD", (("SCRIPT", "LOAD", script_text("probe")),)),
            *commands,
        ]:
            try:
                wire.send(*command)
                reply = wire.reply()
            except ResponseError as error:
                if not lasts(error):
                    raise
                raise server.refuses(name, str(error)) from error
            if name == "EVALSHA" and reply:
                failed, said = (each.decode() for each in reply)
                if lasts(ResponseError(said)):
                    raise server.refuses(f"{failed} in a script", said)
                return
    finally:
        wire.close()
