"""Checks of the body stores: whether they answer, and hold bodies and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from redis.exceptions import RedisError, ResponseError

from ferry.commands.doctor.findings import Finding, error, fine, warning
from ferry.commands.doctor.of_redis import io_threads
from shared.bodies.store import COMMAND_SECONDS, CONNECT_SECONDS
from shared.redis_urls import store_urls
from shared.settings import Settings
from shared.wire.client import connect, public_url

MIB = 2**20
KEEPS_WHAT_LIVES = ("noeviction", "volatile-")
"""How the policies begin that throw nothing away, or only what expires: all bodies do."""


def of_stores(settings: Settings) -> Iterator[Finding]:
    """Look at each server of FERRY_BODY_URLS."""
    for url in store_urls(settings.body_urls):
        check = f"body store {public_url(url)}"
        with connect(
            url, command_seconds=COMMAND_SECONDS, connect_seconds=CONNECT_SECONDS
        ) as client:
            try:
                info: dict[str, Any] = client.info()
                with suppress(ResponseError):
                    info |= client.config_get("save")
            except ResponseError as refused:
                yield warning(check, f"it cannot be looked at: {refused}", "allow INFO to its user")
            except RedisError as failure:
                yield error(
                    check,
                    f"it does not answer: {failure}; large bodies go through Redis",
                    "start it, or leave it out of FERRY_BODY_URLS",
                )
            else:
                yield from io_threads(check, url, info)
                yield from _found(check, info)


def _found(check: str, info: Mapping[str, Any]) -> Iterator[Finding]:
    faults = list(_faults(info))
    for said, action in faults:
        yield warning(check, said, action)
    if not faults:
        used, limit = int(info["used_memory"]), int(info["maxmemory"])
        yield fine(check, f"{used / MIB:.0f} of {limit / MIB:.0f} MiB used, keeps nothing")


def _faults(info: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Return what is wrong with a store, each with what is to be done."""
    if not int(info.get("maxmemory", 0)):
        yield "it has no maxmemory, so bodies may take all of the machine's", "CONFIG SET maxmemory"
    policy = str(info.get("maxmemory_policy", ""))
    if policy and not policy.startswith(KEEPS_WHAT_LIVES):
        said = f"maxmemory-policy {policy} throws bodies away that are under way"
        yield said, "CONFIG SET maxmemory-policy noeviction"
    if info.get("aof_enabled"):
        yield "it writes bodies to an append-only file, for nobody", "CONFIG SET appendonly no"
    if info.get("save"):
        yield "it writes bodies to snapshots, for nobody", 'CONFIG SET save ""'
    if info.get("role") == "slave":
        yield "it is a replica, which takes no bodies", "name its master in FERRY_BODY_URLS"
