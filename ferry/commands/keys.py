"""`ferry keys`: makes API keys, shows and revokes them, in FERRY_KEYS_FILE or in Redis."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ferry.errors import CannotStart
from shared.settings import Settings

if TYPE_CHECKING:
    from shared.access.api_key import ApiKey
    from shared.access.key_store import Store

DURATION = re.compile(r"([1-9][0-9]{0,8})(s|m|h|d)")


def add_keys(command: argparse.ArgumentParser) -> None:
    """Add the actions of `ferry keys`."""
    command.description = (
        "API keys: with the first one, whoever asks needs one. Changes count everywhere within a "
        "second. They are kept as hashes, in FERRY_KEYS_FILE or else in Redis."
    )
    actions = command.add_subparsers(required=True, metavar="ACTION")
    add = actions.add_parser("add", help="make a key and print it, once")
    add.add_argument("name", metavar="NAME", help="what it is called in lists and metrics")
    add.add_argument(
        "--role", action="append", choices=("infer", "admin", "metrics"), dest="roles",
        help="what it may do, may be repeated (infer); admin may do everything",
    )  # fmt: skip
    add.add_argument(
        "--model", action="append", metavar="NAME", dest="models",
        help="a model that it is for, with * and ?, may be repeated (all)",
    )  # fmt: skip
    add.add_argument("--rate", default="", metavar="N/s", help="requests per s, m, h or d (any)")
    add.add_argument("--concurrency", type=int, default=0, metavar="N", help="under way at a time")
    add.add_argument(
        "--priority", type=int, default=0, metavar="LEVEL", help="its most urgent priority level"
    )
    add.add_argument("--expires", default="", metavar="30d", help="in s, m, h or d; or a date")
    add.set_defaults(run=lambda options: add_key(os.environ, options))
    listed = actions.add_parser("list", help="show all keys, without their secrets")
    listed.add_argument("--json", action="store_true", help="print one JSON list, no table")
    listed.set_defaults(run=lambda options: list_keys(os.environ, as_json=options.json))
    revoke = actions.add_parser("revoke", help="let a key in no more")
    revoke.add_argument("names", nargs="+", metavar="NAME", help="a key's name, or its id")
    revoke.set_defaults(run=lambda options: revoke_keys(os.environ, options.names))


def add_key(environ: Mapping[str, str], options: Any) -> int:
    """Make a key and print its text on standard output; raises CannotStart."""
    from shared.access.api_key import ApiKey, digest, new_secret  # noqa: PLC0415 - brings pydantic
    from shared.access.key_store import add, sentence_of  # noqa: PLC0415

    key_id, secret = new_secret()
    now = time.time()
    try:
        key = ApiKey(
            id=key_id, name=options.name, sha256=digest(secret),
            roles=tuple(dict.fromkeys(options.roles or ("infer",))),
            models=tuple(dict.fromkeys(options.models or ("*",))),
            rate=options.rate, concurrency=options.concurrency, priority=options.priority,
            created=now, revoked=0.0, expires=_expiry(options.expires, now),
        )  # fmt: skip
        with _opened(environ) as store:
            add(store, key)
            place = store.place
    except ValueError as error:
        raise CannotStart(sentence_of(error)) from None
    print(secret)
    print(
        f"ferry: key {key.name!r} ({', '.join(key.roles)}) is in {place}; its text stands here "
        "and nowhere else",
        file=sys.stderr,
    )
    return 0


def list_keys(environ: Mapping[str, str], *, as_json: bool) -> int:
    """Print all keys, revoked ones too."""
    tables = import_module("ferry.commands.tables")
    with _opened(environ) as store:
        keys = sorted(_read(store), key=lambda key: (key.created, key.name))
    columns = [
        tables.Column(name, lambda row, name=name: row[name])
        for name in ("name", "id", "roles", "models", "rate", "concurrency", "priority", "expires")
    ] + [tables.Column("state", lambda row: row["state"])]
    rows = [_row(key, as_json=as_json) for key in keys]
    tables.show(rows, columns, as_json=as_json, nothing="no keys: whoever reaches the API may ask")
    return 0


def revoke_keys(environ: Mapping[str, str], names: list[str]) -> int:
    """Revoke keys; raises CannotStart for a name that no good key has."""
    from shared.access.key_store import revoke  # noqa: PLC0415 - brings pydantic

    with _opened(environ) as store:
        for name in names:
            if not revoke(store, name, time.time()):
                raise CannotStart(f"no key {name!r} that could be revoked: see `ferry keys list`")
            print(f"revoked {name}")
    return 0


@contextmanager
def _opened(environ: Mapping[str, str]) -> Iterator[Store]:
    """Yield where the settings keep keys; raises NoRedis when that is a Redis nobody answers at."""
    from shared.access.key_store import store_of  # noqa: PLC0415 - brings pydantic

    settings = Settings.from_env(environ)
    if settings.keys_file:
        yield store_of(settings)
        return
    inspect = import_module("ferry.commands.inspect_redis")
    with inspect.redis_to_inspect(environ) as (found, client):
        yield store_of(found, client)


def _read(store: Store) -> list[ApiKey]:
    path = getattr(store, "path", None)
    if path is not None and not path.exists():
        return []
    return [*store.read().values()]


def _row(key: ApiKey, *, as_json: bool) -> dict[str, Any]:
    state = "revoked" if key.revoked else "good" if key.is_good() else "expired"
    row = key.model_dump(mode="json", exclude={"sha256"}) | {"state": state}
    if as_json:
        return row
    expires = datetime.fromtimestamp(key.expires, UTC).strftime("%Y-%m-%d %H:%M") + "Z"
    return row | {
        "roles": ", ".join(key.roles), "models": ", ".join(key.models),
        "concurrency": key.concurrency or "", "priority": key.priority or "",
        "expires": expires if key.expires else "",
    }  # fmt: skip


def _expiry(text: str, now: float) -> float:
    """Return when a key expires, in seconds since the epoch, 0 for never; raises ValueError."""
    from shared.access.api_key import UNIT_SECONDS  # noqa: PLC0415 - brings pydantic

    if not text:
        return 0.0
    if found := DURATION.fullmatch(text):
        return now + int(found[1]) * UNIT_SECONDS[found[2]]
    try:
        date = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"--expires {text!r} must be like 30d, or a date") from None
    at = date.replace(tzinfo=date.tzinfo or UTC).timestamp()
    if at <= now:
        raise ValueError(f"--expires {text!r} is over already")
    return at
