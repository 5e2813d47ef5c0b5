"""Finds the Redis that a command looks into: REDIS_URL's, or the one that `ferry up` runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import redis
from redis.exceptions import RedisError, ResponseError

from ferry.errors import NoRedis
from ferry.up.embedded_valkey import find_socket
from shared.errors import RedisUnavailable
from shared.settings import Settings
from shared.wire.client import connect, public_url


@contextmanager
def redis_to_inspect(environ: Mapping[str, str]) -> Iterator[tuple[Settings, redis.Redis]]:
    """Yield the settings, their `redis_url` filled in, and a client whose server has answered.

    Raises BadSetting; NoRedis when there is none, or when it fails during the block.
    """
    settings = Settings.from_env(environ)
    if not settings.redis_url:
        settings = replace(settings, redis_url=_embedded_url(Path(settings.state_dir).resolve()))
    client = connect(settings.redis_url, settings.key_prefix)
    try:
        client.ping()
        yield settings, client
    except (RedisError, RedisUnavailable) as error:
        reason = error.__cause__ if isinstance(error, RedisUnavailable) else error
        where = public_url(settings.redis_url)
        if isinstance(reason, ResponseError):  # it is there, and says why it does not serve
            raise NoRedis(f"Redis at {where} refuses: {reason}") from error
        raise NoRedis(f"no Redis at {where}: {reason}") from error
    finally:
        client.close()


def _embedded_url(state_dir: Path) -> str:
    socket = find_socket(state_dir)
    if not socket.exists():
        raise NoRedis(
            f"no Redis: REDIS_URL is not set, and no ferry up runs in {state_dir} (FERRY_STATE_DIR)"
        )
    return f"unix://{quote(str(socket))}"
