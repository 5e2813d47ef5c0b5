"""`ferry doctor`: what is wrong here and with the Redis, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from redis.exceptions import RedisError

from ferry.commands.doctor.findings import Finding, error, warning
from ferry.commands.doctor.of_machine import of_machine
from ferry.commands.doctor.of_redis import of_redis, why_away
from ferry.commands.doctor.of_stores import of_stores
from ferry.commands.inspect_redis import redis_to_inspect
from ferry.commands.tables import Column, show
from ferry.errors import EXIT_FAILED, NoRedis
from shared.errors import RedisUnavailable
from shared.settings import Settings

FINDING_COLUMNS = (
    Column("check", lambda row: row["check"]),
    Column("", lambda row: "" if row["state"] == "ok" else row["state"].upper()),
    Column("found", lambda row: row["found"]),
    Column("to do", lambda row: row["action"]),
)


def doctor(environ: Mapping[str, str], *, as_json: bool) -> int:
    """Print all findings, those first that want something done; return 1 if one is an error.

    Raises BadSetting.
    """
    settings = Settings.from_env(environ)
    found = [
        *_redis(settings, environ), *of_stores(settings), *of_machine(settings, environ)
    ]  # fmt: skip
    order = ("error", "warning", "ok")
    found.sort(key=lambda each: order.index(each.state))
    show([each._asdict() for each in found], FINDING_COLUMNS, as_json=as_json, nothing="")
    return EXIT_FAILED if any(each.state == "error" for each in found) else 0


def _redis(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    try:
        with redis_to_inspect(environ) as (known, client):
            try:
                yield from of_redis(known, client)
            except (RedisError, RedisUnavailable) as failure:
                yield why_away(failure)
    except NoRedis as none:
        if settings.redis_url:
            yield error("redis", str(none), "start it, or unset REDIS_URL to have one embedded")
        else:
            yield warning("redis", str(none), "`ferry up` starts one")
