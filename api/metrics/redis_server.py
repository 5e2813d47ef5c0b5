"""The Redis or Valkey that holds the queues: its memory and its clients."""

from __future__ import annotations

from redis import Redis
from redis.exceptions import NoPermissionError, RedisError

from shared.exposition.families import Family, Figures, Filled
from shared.wire.client import unavailable

OF_INFO = {
    "used_memory": Family(
        "gauge", "ferry_redis_memory_used_bytes", "Memory that Redis has taken.", ()
    ),
    "maxmemory": Family(
        "gauge",
        "ferry_redis_memory_max_bytes",
        "Memory that it may take; 0 for no limit of its own.",
        (),
    ),
    "connected_clients": Family(
        "gauge", "ferry_redis_connected_clients", "Connections to it, of all processes.", ()
    ),
    "evicted_keys": Family(
        "counter",
        "ferry_redis_evicted_keys",
        "Keys that it threw away for want of memory: accepted requests may be among them.",
        (),
    ),
}
"""By their names in INFO."""


class RedisFigures(Figures):
    """What INFO says; nothing, where Ferry's user may not ask that."""

    families = tuple(OF_INFO.values())

    def __init__(self, client: Redis) -> None:
        """Ask `client` at each scrape."""
        self._client = client

    def fill(self, families: Filled) -> None:
        """Add what there is; raises RedisUnavailable."""
        try:
            said = self._client.info()
        except NoPermissionError:
            return
        except RedisError as error:
            raise unavailable(error) from error
        for name, family in OF_INFO.items():
            if name in said:
                families[family.name].add_metric([], float(said[name]))
