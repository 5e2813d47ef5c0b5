"""Cuts a batch whose rows differ in length into passes that compute less padding."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from shared.datatypes import Array
from shared.model_spec import ModelSpec
from worker.instance.batch_parts import DecodedRequest
from worker.instance.passes.costs import PassCost, PassCosts, Sharing

SPLIT_WORTH = 0.9
"""The share of one pass' time at which several are run instead."""
LENGTHS = 32
"""So many different lengths are looked at, others count as the next longer one. fast: 0.1 ms."""


def padded_elements(inputs: Mapping[str, Array], ragged: Collection[str]) -> int:
    """Return how many elements the inputs have in which rows may differ in length."""
    return sum([inputs[name].size for name in ragged if name in inputs])


def passes_of(
    requests: list[DecodedRequest], spec: ModelSpec, sharing: Sharing
) -> list[list[DecodedRequest]]:
    """Return the requests of each forward pass."""
    if sharing.one_length:
        return _by_shape(requests)
    if sharing.costs is not None and len(requests) > 1:
        return by_length(requests, spec.ragged_names, sharing.costs)
    return [requests] if requests else []


def _by_shape(requests: list[DecodedRequest]) -> list[list[DecodedRequest]]:
    """Return the requests in groups whose rows have the same shapes."""
    groups: dict[tuple[tuple[int, ...], ...], list[DecodedRequest]] = {}
    for one in requests:
        shapes = tuple([array.shape[1:] for array in one.arrays.values()])
        groups.setdefault(shapes, []).append(one)
    return list(groups.values())


def by_length(
    requests: list[DecodedRequest], ragged: Collection[str], costs: PassCosts
) -> list[list[DecodedRequest]]:
    """Return the requests in the groups that take the least time, each in one pass.

    All in one unless several passes take a tenth less. Requests keep their order within a group;
    the group of the longest is first.
    """
    sizes = [padded_elements(one.arrays, ragged) / max(1, one.claimed.rows) for one in requests]
    cost = costs.known() if min(sizes) < SPLIT_WORTH * max(sizes) else None
    if cost is None:
        return [requests]
    step = max(1, -(-int(max(sizes)) // LENGTHS))
    rows: dict[int, int] = {}
    steps = [-(-int(size) // step) for size in sizes]
    for length, one in zip(steps, requests, strict=True):
        rows[length] = rows.get(length, 0) + one.claimed.rows
    lengths = sorted(rows, reverse=True)
    cuts = _cuts(lengths, [rows[each] for each in lengths], cost, step)
    group_of = {length: sum(cut <= index for cut in cuts) for index, length in enumerate(lengths)}
    groups: list[list[DecodedRequest]] = [[] for _ in range(len(cuts) + 1)]
    for length, one in zip(steps, requests, strict=True):
        groups[group_of[length]].append(one)
    return groups


def _cuts(lengths: Sequence[int], rows: Sequence[int], cost: PassCost, step: int) -> list[int]:
    """Return before which of the falling lengths a new pass begins, none where one pass is best.

    Dynamic programming: the best passes for the first lengths do not depend on those behind them.
    """
    best: list[tuple[float, int]] = [(0.0, 0)]
    for end in range(1, len(lengths) + 1):
        tries, inside = [], 0
        for begin in range(end - 1, -1, -1):
            inside += rows[begin]
            seconds = cost.seconds + cost.element_seconds * lengths[begin] * step * inside
            tries.append((best[begin][0] + seconds, begin))
        best.append(min(tries))
    together = cost.seconds + cost.element_seconds * lengths[0] * step * sum(rows)
    if best[-1][0] > SPLIT_WORTH * together:
        return []
    cuts, end = [], len(lengths)
    while end := best[end][1]:
        cuts.append(end)
    return cuts
