"""Protected mode: on an address that others reach, Ferry does not start without keys."""

from __future__ import annotations

import os
import sys

import redis

from shared.access.addresses import is_loopback
from shared.access.key_store import store_of
from shared.errors import BadSetting, RedisUnavailable
from shared.settings import Settings
from shared.wire.server_check import check_server

HOW = (
    "make a key (`ferry keys add NAME --role admin`), or set FERRY_INSECURE=1 where whoever "
    "reaches this address may do everything (docs/security.md)"
)


def wants_keys(settings: Settings) -> bool:
    """Tell whether nobody may ask without a key, also where there is none."""
    return not settings.insecure and not is_loopback(settings.host)


def check_protected(settings: Settings, client: redis.Redis | None = None) -> None:
    """Raise BadSetting when others reach the APIs, there is no good key, and nobody said so."""
    if settings.keys_file or wants_keys(settings):
        keys = store_of(settings, client).read()
        if wants_keys(settings) and not any(key.is_good() for key in keys.values()):
            raise BadSetting(
                f"FERRY_HOST={settings.host!r}: others than this machine reach it, and there is no "
                f"API key: {HOW}"
            )


def main() -> int:
    """Print what keeps an API from starting, if anything does; for gunicorn's own process."""
    settings = Settings.from_env(os.environ)
    try:
        check_server(settings)
        check_protected(settings)
    except BadSetting as error:
        print(error)
    except RedisUnavailable:
        pass  # it is waited for, and lets nobody in meanwhile who needs a key
    return 0


if __name__ == "__main__":
    sys.exit(main())
