"""The Redis keys of served and desired versions and of supervisors; `ferry` is FERRY_KEY_PREFIX.

key                       type    holds                                              expires
ferry:models              hash    name/version -> ModelSpec as JSON                  no
ferry:instances           hash    instance id -> InstanceRecord as JSON              no (see 1)
ferry:supervisors:<id>    string  a supervisor's sign of life                        3 heartbeats
ferry:assets:<digest>     string  a file the API needs (a tokenizer)                 no
ferry:pages               hash    name/version -> its report.html, if it has one     no
ferry:references          hash    name/version -> what drift is measured from        no
ferry:probe               string  nothing: whether Redis takes what is written       a second
ferry:devices             hash    supervisor id -> DeviceReport: its machine's GPUs  no (see 2)
ferry:log                 hash    log setting -> its number, of those that are set   no
ferry:trace               hash    model/setting -> its value, as log; see 4          no
ferry:traced              hash    model -> requests traced of its trace_count; see 4 no
ferry:desired             hash    model name -> Desired: what operators asked for    no
ferry:reports             hash    supervisor id -> SupervisorReport: how far it is   no (see 2)
ferry:served              hash    model name -> Serving: where requests go           no
ferry:revisions           hash    numbers of versions' contents, see revision.lua    no
ferry:changes             string  counts changes of desired, reports and served      no
ferry:changed             channel says that `changes` was counted up, or log set    -
ferry:{m/s}:compared:<v>  hash    Comparison of shadow m/s with version v            7 days (see 3)
ferry:{m/s}:disagreed:<v> list    Disagreements of the two, newest first (see 5)     7 days (see 3)

1: removed when the instance ends; when its supervisor's key is gone, by whoever recovers it.
2: removed when the supervisor stops, or by whoever takes over its work.
3: after the last request; written by shared/operations/shadow_comparison.py.
4: a list of strings as JSON; the model's name is empty for settings of all models.
5: at most FERRY_SHADOW_EXAMPLES, with inputs; see shared/operations/disagreements.py.

`changes` is there so that looking is cheap. Registry writes the first ten, DesiredStore the next
five; what a request passes through stands in shared/request_queue/keys.py.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import redis
from redis.exceptions import RedisError

from shared.wire.client import asking

log = logging.getLogger(__name__)

TRACE_COUNT = "trace_count"
"""The trace setting whose change begins the counts of `traced` anew."""


class RegistryKeys:
    """The keys' names under one prefix."""

    def __init__(self, prefix: str) -> None:
        """Begin every name with `prefix`."""
        self.models = f"{prefix}:models"
        self.instances = f"{prefix}:instances"
        self.supervisors = f"{prefix}:supervisors:"
        self.assets = f"{prefix}:assets:"
        self.pages = f"{prefix}:pages"
        self.references = f"{prefix}:references"
        self.log = f"{prefix}:log"
        self.probe = f"{prefix}:probe"
        self.trace = f"{prefix}:trace"
        self.traced = f"{prefix}:traced"
        self.devices = f"{prefix}:devices"
        self.desired = f"{prefix}:desired"
        self.reports = f"{prefix}:reports"
        self.served = f"{prefix}:served"
        self.revisions = f"{prefix}:revisions"
        self.changes = f"{prefix}:changes"
        self.changed = f"{prefix}:changed"
        self._prefix = prefix

    def compared(self, shadow_key: str, version: str) -> str:
        """Return the key that compares a shadow (its `ModelSpec.key`) with a version."""
        return f"{self._prefix}:{{{shadow_key}}}:compared:{version}"

    def disagreed(self, shadow_key: str, version: str) -> str:
        """Return the key of requests to which a shadow answered otherwise than a version."""
        return f"{self._prefix}:{{{shadow_key}}}:disagreed:{version}"


def read_changes(client: redis.Redis, keys: RegistryKeys) -> int:
    """Return a number that is another one after every change; raises RedisUnavailable."""
    return int(asking(lambda: client.get(keys.changes)) or 0)


def ring(client: redis.Redis, keys: RegistryKeys) -> None:
    """Tell the supervisors of a change that was written.

    Not in its transaction, which fails as a whole where Redis does not let us speak; who does
    not hear of it finds it with its next heartbeat.
    """
    try:
        client.publish(keys.changed, b"")
    except RedisError as error:
        log.debug("nobody is told of the change, it will be found: %s", error)


def living_supervisors(client: redis.Redis, keys: RegistryKeys, ids: Iterable[str]) -> set[str]:
    """Return those of these supervisors that live; raises RedisUnavailable."""
    names = sorted(set(ids))
    signs = [keys.supervisors + name for name in names]
    beats = asking(lambda: client.mget(signs)) if signs else []
    return {name for name, beat in zip(names, beats, strict=True) if beat is not None}
