"""The records of asynchronous requests, beside their tensors and answers: how to answer them.

The keys stand in `keys.py`. Specs are kept once for all requests: one with a thousand labels is
larger than most requests.
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any, NamedTuple

import msgpack
import redis
from pydantic import BaseModel, ConfigDict

from shared.errors import ModelNotReady, RedisUnavailable, UnknownRequest
from shared.messages import AnswerForm
from shared.model_spec import ModelSpec
from shared.request_queue.keys import AsyncKeys
from shared.request_queue.limits import IDEMPOTENT_RESULT_SECONDS, Limits
from shared.ticket import TICKET_VERSION
from shared.wire.client import asking, milliseconds

MEMORY_SECONDS = 600.0
"""The time for which a request is known after its answer has expired."""
FLUSH_MS = 2000
KEPT_BESIDES_BYTES = 1000
"""What Redis needs for a request beside its record and its answer: the names of its keys, its
places in sets and hashes, its Idempotency-Key (2026-11-30)."""


class Record(BaseModel):
    """One request: the digest of its model's spec, and how it is to be answered.

    Its body and its answer have the form that goes with a `ticket_version`.
    """

    model_config = ConfigDict(frozen=True)

    spec: str
    how: AnswerForm
    owner: str = ""
    """The id of the API key that it came with, empty without."""
    ticket_version: int = TICKET_VERSION


class Found(NamedTuple):
    """A record, with the spec in place of its digest."""

    spec: ModelSpec
    how: AnswerForm
    owner: str


class FirstUse(NamedTuple):
    """The request that an Idempotency-Key came with first, and a hash of its content."""

    request_id: str
    asked: bytes


class AsyncRecords:
    """The records of all requests; every method raises RedisUnavailable."""

    def __init__(
        self,
        client: redis.Redis,
        prefix: str,
        longest_life_seconds: float,
        *,
        grace_seconds: float = Limits().grace_seconds,
    ) -> None:
        """No request with its answer lives longer than `longest_life_seconds`, and this grace."""
        self._client = client
        self._keys = AsyncKeys(prefix)
        self._grace_seconds = grace_seconds + MEMORY_SECONDS
        self._spec_ms = milliseconds(longest_life_seconds + self._grace_seconds)
        self._known_specs: dict[str, ModelSpec] = {}

    def record_bytes(self, how: AnswerForm, owner: str) -> int:
        """Return how much a request's record takes."""
        digest = sha256().hexdigest()
        record = Record(spec=digest, how=how, owner=owner).model_dump_json()
        return len(record.encode()) + KEPT_BESIDES_BYTES

    def record_seconds(self, life_seconds: float) -> float:
        """Return how long the record is kept of a request that with its answer lives so long."""
        return life_seconds + self._grace_seconds

    def save(
        self,
        request_id: str,
        spec: ModelSpec,
        how: AnswerForm,
        life_seconds: float,
        *,
        durable: bool,
        owner: str = "",
    ) -> None:
        """Keep a request's record for as long as itself and its answer live, and a while longer.

        If `durable`, return once Redis has flushed this and all that was written before (WAITAOF,
        which needs Redis 7.2 or any Valkey, with an append-only file).
        """
        text = spec.model_dump_json().encode()
        digest = sha256(text).hexdigest()
        name = self._keys.spec + digest
        # It may be gone: expired, or with the memory of a Redis that came back empty.
        if not asking(lambda: self._client.pexpire(name, self._spec_ms)):
            asking(lambda: self._client.set(name, text, px=self._spec_ms))
        record = Record(spec=digest, how=how, owner=owner).model_dump_json().encode()
        key, ttl_ms = (
            self._keys.request + request_id,
            milliseconds(self.record_seconds(life_seconds)),
        )
        with self._client.pipeline(transaction=False) as opened:
            pipeline: Any = opened  # its execute_command has no types
            pipeline.set(key, record, px=ttl_ms)
            if durable:
                pipeline.execute_command("WAITAOF", 1, 0, FLUSH_MS)
            replies = asking(pipeline.execute)
        if durable and replies[1][0] < 1:
            raise RedisUnavailable(f"Redis did not flush the request within {FLUSH_MS} ms")

    def find(self, request_id: str) -> Found:
        """Return a request's model, as it was then, and how to answer it; raises UnknownRequest.

        Raises ModelNotReady for one whose answer another release of Ferry alone can read.
        """
        found = asking(lambda: self._client.get(self._keys.request + request_id))
        if found is None:
            raise UnknownRequest(f"no request {request_id!r}")
        if json.loads(found).get("ticket_version", TICKET_VERSION) != TICKET_VERSION:
            raise ModelNotReady("this request came by another release of Ferry: ask again")
        record = Record.model_validate_json(found)
        if record.spec not in self._known_specs:
            text = asking(lambda: self._client.get(self._keys.spec + record.spec))
            if text is None:
                raise UnknownRequest(f"no request {request_id!r}: its model is forgotten")
            self._known_specs[record.spec] = ModelSpec.model_validate_json(text)
        return Found(self._known_specs[record.spec], record.how, record.owner)

    def first(self, model: str, key: str, ours: FirstUse) -> FirstUse:
        """Return the first use of an Idempotency-Key of a model's: `ours`, or an earlier one.

        subtle: `SET NX GET` in one command needs Redis 7.
        """
        name, ttl_ms = self._once_key(model, key), milliseconds(IDEMPOTENT_RESULT_SECONDS)
        packed = msgpack.packb(ours)
        while not asking(lambda: self._client.set(name, packed, nx=True, px=ttl_ms)):
            found = asking(lambda: self._client.get(name))
            if found is not None:
                return FirstUse(*msgpack.unpackb(found))
        return ours

    def forget_key(self, model: str, key: str) -> None:
        """Forget an Idempotency-Key: it may come again with another request."""
        asking(lambda: self._client.delete(self._once_key(model, key)))

    def _once_key(self, model: str, key: str) -> str:
        return self._keys.once + sha256(f"{model}\0{key}".encode()).hexdigest()
