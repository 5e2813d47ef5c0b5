"""Checks of the Redis: its version, what it keeps, how far it is away, and its models."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any

import redis
from redis.exceptions import ResponseError

from ferry.commands.doctor.findings import Finding, error, fine, warning
from shared.cores import default_cores
from shared.errors import BadSetting
from shared.redis_urls import RedisUrl
from shared.registry.registry import Registry
from shared.registry.repository_index import UNLOADED, repository_index
from shared.registry.snapshot import Snapshot
from shared.settings import Settings
from shared.wire.client import public_url
from shared.wire.server_check import check_server

PINGS = 25
ROUND_TRIPS = 2.3
"""Of a lone request, as measured (docs/decisions/queue.md)."""
FAR_MS = 2.0
SKEW_SECONDS = 1.0
NEARLY_FULL = 0.9
CORES_FOR_IO_THREADS = 8
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
NOEVICTION = "noeviction"


def of_redis(settings: Settings, client: redis.Redis) -> Iterator[Finding]:
    """Look at a server that answers; raises RedisError when it stops to."""
    try:
        check_server(settings)
    except BadSetting as refused:
        yield error("redis", refused.message, "see docs/operating.md, `Your own Redis`")
        return
    info = _info(client)
    if not info:
        yield warning("redis", "its user may not ask INFO", "allow INFO to Ferry's user")
    else:
        yield from _server(settings, info)
        yield _persistence(settings, info)
        yield from _memory(info)
        yield from io_threads("io-threads", settings.redis_url, info)
    yield _latency(client)
    yield _clock(client)
    yield from _models(Registry(client, settings.key_prefix).snapshot())


def _info(client: redis.Redis) -> dict[str, Any]:
    try:
        found: dict[str, Any] = client.info()
    except ResponseError:
        return {}
    return found


def _server(settings: Settings, info: Mapping[str, Any]) -> Iterator[Finding]:
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info.get("valkey_version") or info.get("redis_version", ""))
    yield fine("redis", f"{name} {version} at {public_url(settings.redis_url)}, takes our commands")
    if info.get("role") == "slave":
        yield error(
            "role",
            "it is a replica, which takes no writes",
            f"name its master in REDIS_URL: {info.get('master_host')}:{info.get('master_port')}",
        )


def _persistence(settings: Settings, info: Mapping[str, Any]) -> Finding:
    check = "persistence"
    if info.get("aof_last_write_status", "ok") != "ok":
        return error(check, "its append-only file cannot be written", "look at its disk and log")
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        return error(
            check,
            "its last snapshot failed: it refuses writes, if stop-writes-on-bgsave-error is on",
            "look at its disk and log",
        )
    if info.get("aof_enabled"):
        return fine(check, "append-only file")
    return (error if settings.durable else warning)(
        check,
        "no append-only file: a restart of Redis loses what waits"
        + (", and FERRY_DURABLE promises that it does not" if settings.durable else ""),
        "CONFIG SET appendonly yes, and in its configuration",
    )


def _memory(info: Mapping[str, Any]) -> Iterator[Finding]:
    policy, limit = str(info.get("maxmemory_policy", "")), int(info.get("maxmemory", 0))
    used, evicted = int(info.get("used_memory", 0)), int(info.get("evicted_keys", 0))
    action = "CONFIG SET maxmemory-policy noeviction, and in its configuration"
    if evicted:
        said = f"it threw {evicted} keys away, accepted requests may have been among them"
        yield error("eviction", said, action)
    if policy == NOEVICTION:
        yield fine("maxmemory-policy", policy)
    elif policy:  # with a limit the server is refused before
        yield warning("maxmemory-policy", f"{policy}, and maxmemory is not set yet", action)
    said = f"{used / 2**20:.0f} MiB used, " + (
        f"maxmemory {limit / 2**20:.0f} MiB" if limit else "no maxmemory"
    )
    if limit and used > NEARLY_FULL * limit:
        yield error("memory", said, "raise maxmemory: full, it takes no requests")
    else:
        yield fine("memory", said)


def io_threads(check: str, url: str, info: Mapping[str, Any]) -> Iterator[Finding]:
    """Find threads of a server on this machine that take the cores which Ferry needs."""
    found = RedisUrl.of(url)
    is_here = bool(found.path) or {host for host, _ in found.hosts} <= LOOPBACK
    has_threads = info.get("io_threads_active") or "used_active_time_io_thread_1" in info
    if has_threads and is_here and (cores := default_cores()) < CORES_FOR_IO_THREADS:
        yield warning(
            check,
            f"its io-threads spin while they wait, and take Ferry's {cores} cores from it",
            "start it without io-threads",
        )


def _latency(client: redis.Redis) -> Finding:
    took = []
    for _ in range(PINGS):
        began = time.perf_counter()
        client.ping()
        took.append(1000 * (time.perf_counter() - began))
    middle, worst = statistics.median(took), max(took)
    said = (
        f"a round trip takes {middle:.2f} ms (at most {worst:.2f} of {PINGS}); "
        f"a lone request makes {ROUND_TRIPS}: {ROUND_TRIPS * middle:.1f} ms"
    )
    if middle > FAR_MS:
        return warning("latency", said, "run Redis nearer to the APIs and workers")
    return fine("latency", said)


def _clock(client: redis.Redis) -> Finding:
    before = time.time()
    seconds, microseconds = client.time()
    after = time.time()
    skew = (before + after) / 2 - (seconds + microseconds / 1e6)
    said = f"{abs(skew):.3f} s {'ahead of' if skew > 0 else 'behind'} Redis's"
    if abs(skew) > SKEW_SECONDS + (after - before):
        return warning(
            "clock",
            f"this machine's is {said}; canaries and standbys end by each machine's own",
            "have all machines follow one time server; deadlines go by Redis's clock alone",
        )
    return fine("clock", said)


def _models(snapshot: Snapshot) -> Iterator[Finding]:
    if not snapshot.supervised:
        yield warning("workers", "no worker gives a sign of life", "start `python -m worker`")
    if not snapshot.is_complete:
        yield warning("workers", "a worker still reads its repository", "wait, then look again")
    for entry in repository_index(snapshot):
        name = f"model {entry['name']}" + (f"/{entry['version']}" if "version" in entry else "")
        if entry["state"] == "UNAVAILABLE" and entry["reason"] != UNLOADED:
            yield error(name, entry["reason"], "`ferry models check` looks at its files")
        elif entry["state"] == "READY":
            has_fault = bool(entry["reason"]) and _is_fault(snapshot, entry)
            yield (
                warning(name, entry["reason"], "see `ferry workers`")
                if has_fault
                else fine(name, entry["reason"] or "served")
            )


def _is_fault(snapshot: Snapshot, entry: Mapping[str, str]) -> bool:
    """Tell whether a version that serves has something wrong, and is not just in a rollout."""
    faulty = snapshot.warnings.keys() | snapshot.degraded.keys()
    return f"{entry['name']}/{entry['version']}" in {key.partition("@")[0] for key in faulty}


def why_away(failure: Exception) -> Finding:
    """Return that a server stopped to answer."""
    return error("redis", f"it does not answer any more: {failure}", "look whether it runs")
