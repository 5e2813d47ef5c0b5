"""The `dynamic_batching` block of a `config.pbtxt`."""

from __future__ import annotations

from typing import Any

from tritonclient.grpc import model_config_pb2

from shared.model_spec import QueuePolicy

MAX_OWN_QUEUES = 100
"""Up to so many levels of priority each have a queue."""
EXACT_LEVELS = 32
"""Of more levels, the first ones that have."""
LAST_LEVELS = 8
"""And the last ones, for work that may wait for all other."""
MAX_NAMED_LEVELS = 64
"""A queue's number is one byte in a ticket."""


def read_batching(message: Any) -> dict[str, Any]:
    """Return the fields of `ModelSpec` that a config's `dynamic_batching` sets.

    Raises ValueError naming field and value. Triton takes the block beside `max_batch_size` 0 as
    well, as long as it names no preferred size: its queue is of use without batches.
    """
    batching = message.dynamic_batching
    levels, default = _priorities(batching)
    floors = _floors(levels, {default, *batching.priority_queue_policy})
    return {
        "max_queue_delay_seconds": batching.max_queue_delay_microseconds / 1e6,
        "preferred_batch_sizes": _preferred_sizes(batching, message.max_batch_size),
        "preserve_ordering": batching.preserve_ordering,
        "priority_levels": levels,
        "default_priority_level": default,
        "queue_policies": _policies(batching, levels, floors),
    } | ({"level_floors": floors} if floors else {})


def _priorities(batching: Any) -> tuple[int, int]:
    """Return the levels of priority and the default one, which Triton wants if there are any."""
    levels, default = batching.priority_levels, batching.default_priority_level
    if levels and not 1 <= default <= levels:
        raise ValueError(f"default_priority_level {default} must be from 1 to {levels}")
    return levels, default if levels else 1


def _floors(levels: int, named: set[int]) -> tuple[int, ...]:
    """Return the lowest level of each queue; none when each level has its own.

    Triton makes a queue for each of up to 2^64 - 1 levels that is asked for; here the first and
    the last ones and the `named` have one, and those between share one for each power of two.
    """
    if levels <= MAX_OWN_QUEUES:
        return ()
    if len(named) > MAX_NAMED_LEVELS:
        raise ValueError(
            f"priority_queue_policy: {len(named)} levels are named, of more than {MAX_OWN_QUEUES} "
            f"priority_levels at most {MAX_NAMED_LEVELS} can be"
        )
    last = range(levels - LAST_LEVELS + 1, levels + 1)
    exact = {*range(1, EXACT_LEVELS + 1), *last, *named}
    powers = {2**power for power in range(levels.bit_length())}
    starts = exact | {level + 1 for level in exact} | powers
    return tuple(sorted(level for level in starts if level <= levels))


def _preferred_sizes(batching: Any, max_batch_size: int) -> tuple[int, ...]:
    for size in batching.preferred_batch_size:
        if not 1 <= size <= max_batch_size:
            raise ValueError(
                f"preferred_batch_size {size} must be from 1 to max_batch_size {max_batch_size}"
            )
    return tuple(sorted(set(batching.preferred_batch_size)))


def _policies(batching: Any, levels: int, floors: tuple[int, ...]) -> tuple[QueuePolicy, ...]:
    """Return the policy of each queue, that of level 1 first; none when the config has none.

    A level without one of its own has the default policy, which is Triton's defaults if it is not
    given. Without levels there is one queue, and it has the default policy.
    """
    own = batching.priority_queue_policy
    for level in sorted(own):
        if not 1 <= level <= levels:
            raise ValueError(
                f"priority_queue_policy: key {level} must be a level, priority_levels is {levels}"
            )
    if not own and not batching.HasField("default_queue_policy"):
        return ()
    policies = {level: _policy(own[level], f"priority_queue_policy {level}") for level in own}
    default = _policy(batching.default_queue_policy, "default_queue_policy")
    return tuple(policies.get(level, default) for level in floors or range(1, max(1, levels) + 1))


def _policy(policy: Any, field: str) -> QueuePolicy:
    actions = model_config_pb2.ModelQueuePolicy.TimeoutAction
    if policy.timeout_action not in actions.values():
        raise ValueError(
            f"{field}: timeout_action {policy.timeout_action}: expected one of {actions.keys()}"
        )
    return QueuePolicy(
        timeout_action=actions.Name(policy.timeout_action),
        default_timeout_seconds=policy.default_timeout_microseconds / 1e6,
        allow_timeout_override=policy.allow_timeout_override,
        max_queue_size=policy.max_queue_size,
    )
