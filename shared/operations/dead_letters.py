"""The requests that were given up: look at them, push them anew, drop them."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgpack
from redis import Redis

from shared.errors import RedisUnavailable, RequestGone, UnknownModel, UnknownRequest
from shared.messages import AnswerForm, InferRequest
from shared.model_spec import ModelSpec
from shared.operations.queue_inspection import lists
from shared.registry.registry import Registry
from shared.request_queue.async_records import AsyncRecords
from shared.request_queue.async_requests import AsyncRequests, new_id
from shared.request_queue.keys import QueueKeys
from shared.request_queue.limits import IDEMPOTENT_RESULT_SECONDS, Limits, grace_seconds
from shared.settings import Settings


class DeadLetter(NamedTuple):
    """One request that was given up, as `recover.lua` wrote it down; times are Redis's clock.

    `instance` is the one that died last under it. `entry` is what stands on the list.
    """

    id: str
    model_key: str
    rows: int
    level: int
    attempts: int
    enqueued: float
    died: float
    instance: str
    signature: bytes
    entry: bytes

    @classmethod
    def read(cls, model_key: str, entry: bytes) -> DeadLetter:
        """Take an entry apart."""
        request_id, rows, level, attempts, enqueued, died, instance, signature = msgpack.unpackb(
            entry, raw=True
        )
        return cls(
            request_id.decode(), model_key, rows, level, attempts, enqueued, died,
            instance.decode(), signature, entry,
        )  # fmt: skip


class DeadLetters:
    """The dead of all model versions; every method may raise RedisError or RedisUnavailable."""

    def __init__(self, client: Redis, settings: Settings) -> None:
        """Use `client`; a replayed request waits under the terms and limits of `settings`."""
        self._client = client
        self._settings = settings
        self._registry = Registry(client, settings.key_prefix)
        longest = settings.request_timeout_seconds + IDEMPOTENT_RESULT_SECONDS
        grace = grace_seconds(settings)
        self._records = AsyncRecords(client, settings.key_prefix, longest, grace_seconds=grace)

    def all(self) -> list[DeadLetter]:
        """Return the dead of all versions, newest first."""
        found = []
        for model_key, kind, _ in lists(self._client, self._settings.key_prefix):
            if kind == "dead":
                entries: Any = self._client.lrange(self._keys(model_key).dead, 0, -1)
                found += [DeadLetter.read(model_key, entry) for entry in entries]
        return sorted(found, key=lambda letter: letter.died, reverse=True)

    def request(self, letter: DeadLetter) -> InferRequest:
        """Return the request itself; raises RequestGone after seven days, BadMessage."""
        body: Any = self._client.get(self._keys(letter.model_key).dead_body + letter.id)
        if body is None:
            raise RequestGone(f"request {letter.id} was given up, its inputs are no longer kept")
        return InferRequest.decode(letter.id, letter.rows, body)._replace(
            signature=letter.signature, priority=letter.level
        )

    def drop(self, letter: DeadLetter) -> None:
        """Forget a dead request and its inputs."""
        keys = self._keys(letter.model_key)
        with self._client.pipeline(transaction=True) as opened:
            pipeline: Any = opened
            pipeline.lrem(keys.dead, 1, letter.entry).unlink(keys.dead_body + letter.id).execute()

    def replay(self, letter: DeadLetter) -> str:
        """Push a dead request once more and return its new id; the dead one stays until dropped.

        Its answer is kept for an hour, for GET /v2/requests/<id>, which writes it as the first
        request's route would have when that was asynchronous, else as a v2 answer. Raises
        UnknownModel, RequestGone, QueueFull.
        """
        settings, spec = self._settings, self._spec(letter)
        request_id, timeout = new_id(idempotent=True), settings.request_timeout_seconds
        request = self.request(letter)._replace(
            id=request_id, timeout_seconds=timeout, priority=min(letter.level, spec.levels),
            named=True,
        )  # fmt: skip
        keys = QueueKeys(settings.key_prefix, spec.key, spec.levels)
        requests = AsyncRequests(self._client, keys, Limits.of(spec, settings))
        requests.submit(request)
        try:
            self._records.save(
                request_id, spec, self._how(letter), timeout + IDEMPOTENT_RESULT_SECONDS,
                durable=settings.durable,
            )  # fmt: skip
        except RedisUnavailable:
            requests.cancel(request_id)
            raise
        return request_id

    def _spec(self, letter: DeadLetter) -> ModelSpec:
        name, _, version = letter.model_key.partition("@")[0].partition("/")
        spec = self._registry.snapshot().models.get(name, {}).get(version)
        if spec is None:
            raise UnknownModel(f"no worker serves version {version} of '{name}' any more")
        return spec

    def _how(self, letter: DeadLetter) -> AnswerForm:
        try:
            return self._records.find(letter.id).how
        except UnknownRequest:
            return AnswerForm("infer")

    def _keys(self, model_key: str) -> QueueKeys:
        return QueueKeys(self._settings.key_prefix, model_key)
