"""The keys that a request passes through in Redis; its ticket is `shared/ticket.py`.

Keys of one model version m/v share a hash tag, so each script would run in one slot of a
cluster. `ferry` is FERRY_KEY_PREFIX.

    key                             type    holds                                          expires
    ferry:{m/v}:queue:<level>       list    tickets of waiting requests, oldest first     no
    ferry:{m/v}:delayed:<level>     list    those that waited too long, served after it   no
    ferry:{m/v}:bytes               string  body bytes of the tickets on the queues       no
    ferry:{m/v}:bell                list    at most one wake-up token, no data            no
    ferry:{m/v}:turns               hash    API keys' turns on the queues, see _turns.lua no (see 4)
    ferry:{m/v}:closed              string  this version takes no requests any more       an hour
    ferry:{m/v}:elsewhere           string  `all` or `unnamed`: these requests go to      no (see 6)
                                            another version now
    ferry:{m/v}:inflight:<instance> list    tickets claimed and not yet published; those  no (see 1)
                                            of a second batch under <instance>+
    ferry:{m/v}:body:<id>           string  a request's tensors; exists while it is open  yes
    ferry:{m/v}:result:<id>         string  one encoded result                            yes
    ferry:{m/v}:answered:<process>  list    ids of results stored for one API process     yes
    ferry:{m/v}:order               list    ids as claimed, if answers must keep to it    no (see 2)
    ferry:{m/v}:digest:<id>         string  what an open request asks (see 3)             yes
    ferry:{m/v}:asked:<digest>      list    tickets of those who ask this (see 3)         yes
    ferry:{m/v}:followed            string  body bytes of the tickets behind the first    yes
    ferry:{m/v}:cache               hash    digest -> answer; `bytes` of all of them      yes
    ferry:{m/v}:cache:expiry        zset    digests by when their answers expire          yes
    ferry:{m/v}:cache:used          zset    digests by when they were last asked for      yes
    ferry:{m/v}:kept                zset    what is kept, by when it is forgotten, _kept.lua  yes
    ferry:{m/v}:kept:bytes          hash    its bytes, and sums of them                   yes
    ferry:{m/v}:counts              hash    requests by how they ended, model_statistics  no (see 4)
    ferry:{m/v}:stats               hash    what its requests cost, see model_statistics  no (see 4)
    ferry:{m/v}:dead                list    the last 1000 requests given up, newest first no (see 4)
    ferry:{m/v}:deadbody:<id>       string  the tensors of such a request                 7 days

    1: dropped when its batch is published; a dead instance's is moved by `recover`.
    2: only of models with preserve_ordering. Who closes a request takes off what need not wait.
    3: only of models with a response cache, as the six keys from here on. The first ticket's
       request leads: it waits or runs itself, and its answer is everybody's (docs/cache.md).
    4: but 7 days after the version has left.
    6: written with `served` (shared/registry/desired_store.py), in one step; for an hour more once
       the version has left. `unnamed` are requests that name no version.

`answered:<process>` is also a channel, to which that process listens: small results are said there
and not stored, and an empty message has it take what is stored.

Of asynchronous requests there are records as well, of all models together:

    ferry:request:<id>       string  Record: how to answer, digest of the model's spec     (see 5)
    ferry:spec:<digest>      string  the ModelSpec that they were checked against        after them
    ferry:once:<hash>        string  FirstUse: what came first under an Idempotency-Key    an hour

    5: ten minutes after the answer expired. Until then it is known that it was asked for.

Times are Redis's own clock, so no host's clock matters. A request is open while its body exists:
whoever removes the body (the first answer, expiry, a cancel) closes it, so an answer is given once
however often a request is run.
"""

from __future__ import annotations

from functools import cached_property

from shared.model_spec import ModelSpec

RETIRED_COUNTS_SECONDS = 7 * 86_400.0
"""The life of a version's counts after it has left."""


def lanes_of(instance: str) -> tuple[str, str]:
    """Return the names by which an instance claims, the second for one batch beside another."""
    return instance, f"{instance}+"


class QueueKeys:
    """The names of one model version's keys."""

    def __init__(
        self, prefix: str, model_key: str, levels: int = 1, *, cached: bool = False
    ) -> None:
        """Name the keys of `model_key` (`name/version`) under `prefix`, with `levels` queues.

        `cache` tells the scripts of a `cached` model how its keys begin; it is empty otherwise.
        """
        tag = f"{prefix}:{{{model_key}}}"
        self.levels = levels
        self.model_key = model_key
        self._prefix = prefix
        self.tag = f"{tag}:"
        self.cache = self.tag if cached else ""
        self.queue = f"{tag}:queue:"
        self.delayed = f"{tag}:delayed:"
        self.bytes = f"{tag}:bytes"
        self.bell = f"{tag}:bell"
        self.turns = f"{tag}:turns"
        self.closed = f"{tag}:closed"
        self.elsewhere = f"{tag}:elsewhere"
        self.inflight = f"{tag}:inflight:"
        self.body = f"{tag}:body:"
        self.result = f"{tag}:result:"
        self.answered = f"{tag}:answered:"
        self.order = f"{tag}:order"
        self.kept = f"{tag}:kept"
        self.kept_bytes = f"{tag}:kept:bytes"
        self.counts = f"{tag}:counts"
        self.stats = f"{tag}:stats"
        self.dead = f"{tag}:dead"
        self.dead_body = f"{tag}:deadbody:"

    @classmethod
    def of(cls, spec: ModelSpec, prefix: str) -> QueueKeys:
        """Name the keys of a model version."""
        return cls(prefix, spec.key, spec.levels, cached=spec.cached)

    @property
    def answers(self) -> list[str]:
        """The keys of the answers that are kept."""
        return [f"{self.tag}cache", f"{self.tag}cache:expiry", f"{self.tag}cache:used"]

    def held_by(self, instance: str) -> list[str]:
        """Return the lists of what an instance holds, in flight in one batch and in another."""
        return [self.inflight + lane for lane in lanes_of(instance)]

    @cached_property
    def with_bulk(self) -> QueueKeys:
        """The same with the queue for bulk behind all levels (`ModelSpec.bulk_queue`).

        fast: who pushes for clients does not look at it.
        """
        return QueueKeys(self._prefix, self.model_key, self.levels + 1, cached=bool(self.cache))

    @cached_property
    def queues(self) -> list[str]:
        """The queues of all levels, the one that is served first at the front."""
        return [f"{self.queue}{level}" for level in range(1, self.levels + 1)]

    @cached_property
    def lists(self) -> list[str]:
        """Where a request may wait, as it is served: each level's queue, then its delayed."""
        levels = range(1, self.levels + 1)
        return [f"{prefix}{level}" for level in levels for prefix in (self.queue, self.delayed)]


class AsyncKeys:
    """The names of the keys of asynchronous requests, of all models."""

    def __init__(self, prefix: str) -> None:
        """Name them under `prefix`: each begins so, and ends with an id, digest or hash."""
        self.request = f"{prefix}:request:"
        self.spec = f"{prefix}:spec:"
        self.once = f"{prefix}:once:"
