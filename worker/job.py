"""The order that a supervisor gives an instance when its process starts.

A module without any framework, as the supervisor's process has none.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from shared.model_spec import ModelSpec
from shared.request_queue.limits import Limits
from worker.devices import Placement
from worker.repository.config.warmup import WarmupSample

DEVICE_IS_LOST = 75
"""The exit code of an instance whose device takes no more work of its process."""
ANSWERS_NO_MORE = 76
"""That of an instance which fails what it answered before, on a device that works."""
LOST = "lost"
"""The word of its last report, beside "ready" and "failed", before the reason and suspects' ids."""
MAX_SUSPECTS = 500
"""Ids in that report, which must fit into a pipe that nobody may be reading; of more, none are."""


@dataclass(frozen=True)
class InstanceJob:
    """The whole order, which travels to the forked process.

    `limits.cache` holds for its own queue, all of `limits` for those of an ensemble's steps. `cold`
    says why it is not to be warmed up with made-up inputs, if it is not. `memory_bytes` is what the
    last one took of its GPU, 0 for the first. It may grow by `max_growth_bytes`, 0 for any number.
    `traces_url` is where its spans go, empty for nowhere. Samples of
    requests lie in `state_dir`. With `shared_body_bytes` large tensors lie in shared memory, with
    `body_urls` in those servers.
    """

    id: str
    spec: ModelSpec
    backend: str
    file: Path
    placement: Placement
    redis_url: str
    key_prefix: str
    result_ttl_seconds: float
    log_level: str
    limits: Limits = Limits()  # noqa: RUF009, it is frozen
    trusted: Collection[str] = ()
    warmup: tuple[WarmupSample, ...] = ()
    cold: str = ""
    require_verified: bool = False
    memory_bytes: int = 0
    max_growth_bytes: int = 0
    log_format: str = "text"
    traces_url: str = ""
    state_dir: str = ".ferry"
    shared_body_bytes: int = 0
    body_urls: str = field(default="", repr=False)
