"""Tells a supervisor at once that something was desired, reported or served anew."""

from __future__ import annotations

import logging

import redis
from redis.exceptions import RedisError, ResponseError

from shared.registry.keys import RegistryKeys
from shared.wire.wire import open_wire

log = logging.getLogger(__name__)


class ChangeBell:
    """One connection that listens for DesiredStore's writes; for one thread.

    What is said while it is closed is lost, so who listens looks by itself now and then.
    """

    def __init__(self, client: redis.Redis, prefix: str) -> None:
        """Use the connection settings of `client`; opens nothing before `listen`."""
        self._wire = open_wire(client)
        self._channel = RegistryKeys(prefix).changed
        self._is_deaf = False

    @property
    def descriptor(self) -> int | None:
        """Return what can be read when it rings, None while it does not listen."""
        opened = self._wire.plain_socket()
        return None if opened is None else opened.fileno()

    def listen(self) -> None:
        """Connect, unless it is: from then on it rings. Raises RedisError.

        It never does over TLS, whose layer may hold what `poll` cannot see, nor where Redis does
        not let us listen: then there is no `descriptor`, and who asks looks more often.
        """
        if self._is_deaf or self._wire.is_open:
            return
        self._wire.send(("SUBSCRIBE", self._channel))
        try:
            self._wire.reply()
        except ResponseError as error:
            log.warning("changes are looked for instead of heard of: %s", error)
            self._wire.close()
        if self.descriptor is None:
            self._is_deaf = True
            self._wire.close()  # else Redis would keep for us what nobody reads

    def read(self) -> None:
        """Take in what was said, so that it can ring again; a lost connection closes it."""
        try:
            while self._wire.has_reply(0.0):
                self._wire.reply()
        except RedisError as error:
            log.debug("changes are looked for until the connection is there again: %s", error)

    def close(self) -> None:
        """Hear nothing any more."""
        self._wire.close()
