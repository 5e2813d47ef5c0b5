"""The limits of a model version's queue, batches and cache: sizes and lifetimes."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from shared.model_spec import ModelSpec, QueuePolicy
from shared.request_queue.keys import QueueKeys
from shared.settings import Settings

BATCH_MARGIN_SECONDS = 60.0
"""The time that a batch which began before its requests' deadline has besides its longest run."""
IDEMPOTENT_RESULT_SECONDS = 3600.0
"""The life of the answer to a request with an Idempotency-Key."""


class CacheLimits(NamedTuple):
    """The size of one model version's cache, and how long an answer in it is good."""

    bytes: int = 64 * 2**20
    seconds: float = 300.0


class Kept(NamedTuple):
    """What is kept of a request for whose answer nobody waits, by which API key.

    Its record has `bytes` and is kept for `seconds`. Its answer comes within `open_seconds`, 0 when
    none is kept.
    """

    bytes: int
    seconds: float
    open_seconds: float
    owner: str


class Limits(NamedTuple):
    """The limits of one model version's queue: requests, and bytes of their bodies.

    `policies` are those of its levels, level 1 first, or none. API keys take turns of `turn_rows`,
    a batch's. For who asks later `kept_bytes` are kept. An answer that was in the cache is kept for
    `result_ttl_seconds`, until it is read.
    A body outlives its request's deadline by `grace_seconds`: a batch that was claimed just before
    it may run so long, and without its body a request's answer is thrown away.
    """

    requests: int = 10_000
    bytes: int = 256 * 2**20
    grace_seconds: float = 60.0 + BATCH_MARGIN_SECONDS
    policies: tuple[QueuePolicy, ...] = ()
    turn_rows: int = 1
    kept_bytes: int = 256 * 2**20
    result_ttl_seconds: float = 60.0
    cache: CacheLimits = CacheLimits()

    @classmethod
    def of(cls, spec: ModelSpec, settings: Settings) -> Limits:
        """Return a model version's limits."""
        return cls.usual(settings).of_model(spec)

    @classmethod
    def usual(cls, settings: Settings) -> Limits:
        """Return the limits of any model, without policies."""
        return cls(
            settings.max_queue_size,
            settings.max_queue_bytes,
            grace_seconds(settings),
            result_ttl_seconds=settings.result_ttl_seconds,
            cache=CacheLimits(settings.cache_bytes, settings.cache_seconds),
            kept_bytes=settings.max_kept_bytes,
        )

    def of_model(self, spec: ModelSpec) -> Limits:
        """Return the limits with what a model's config says."""
        return self._replace(policies=spec.queue_policies, turn_rows=spec.batch_rows)

    def policy(self, level: int) -> QueuePolicy | None:
        """Return the policy of a level, if the model has any; none is of the queue for bulk."""
        return self.policies[level - 1] if level <= len(self.policies) else None


def grace_seconds(settings: Settings) -> float:
    """Return how long after its deadline a request may still be answered."""
    return settings.max_batch_seconds + BATCH_MARGIN_SECONDS


class Batching(NamedTuple):
    """The rules of a model version's batches, besides their rows and their delay.

    `has_policies` says that its requests may have time-outs on the queue.
    """

    preferred_sizes: tuple[int, ...] = ()
    preserve_ordering: bool = False
    has_policies: bool = False

    @classmethod
    def of(cls, spec: ModelSpec) -> Batching:
        """Return the rules in a model's config."""
        return cls(spec.preferred_batch_sizes, spec.preserve_ordering, bool(spec.queue_policies))


class Loss(NamedTuple):
    """What an instance said before it ended: why, and the ids of what ran when it failed.

    `untouched` is the name by which it held a batch that no model had seen, empty for none.
    """

    reason: str = ""
    suspects: Collection[str] = ()
    untouched: str = ""


NO_LOSS = Loss()


class InstanceEnd(NamedTuple):
    """One instance that claims from a model version's queue, and its batches' rules."""

    keys: QueueKeys
    instance: str
    result_ttl_seconds: float
    batching: Batching = Batching()
    cache: CacheLimits = CacheLimits()
