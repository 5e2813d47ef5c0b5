"""A model's statistics as Triton's extension writes them, over HTTP and gRPC."""

from __future__ import annotations

from collections.abc import Iterable

from redis import Redis

from shared.model_spec import ModelSpec
from shared.request_queue.model_statistics import ModelCosts, Totals, read_costs


def model_statistics(
    client: Redis, prefix: str, specs: Iterable[ModelSpec]
) -> list[dict[str, object]]:
    """Return Triton's `model_stats` of these model versions, zeros for one never asked.

    Beside Triton's members, `batches_left` counts the batches by why they left the queue. What a
    client has been answered is in it. Raises RedisUnavailable.
    """
    specs = list(specs)
    costs = read_costs(client, prefix, specs)
    return [_described(spec, each) for spec, each in zip(specs, costs, strict=True)]


def of_triton(statistics: dict[str, object]) -> dict[str, object]:
    """Leave out the figures that Triton's message of statistics has no field for."""
    return {name: value for name, value in statistics.items() if name != "batches_left"}


def _described(spec: ModelSpec, costs: ModelCosts) -> dict[str, object]:
    sizes, cache, total = costs.by_size, costs.cache, costs.total
    answered = total.request_count + cache.hits
    return {
        "name": spec.name,
        "version": spec.version,
        "last_inference": int(1000 * total.last_inference),
        "inference_count": int(total.row_count),
        "execution_count": int(total.execution_count),
        "inference_stats": {
            "success": _duration(answered, total.request_seconds + cache.hit_seconds),
            "fail": _duration(costs.failed_count, costs.failed_seconds),
            "queue": _duration(answered, total.queue_seconds + cache.hit_seconds),
            "compute_input": _duration(total.request_count, total.request_input_seconds),
            "compute_infer": _duration(total.request_count, total.request_infer_seconds),
            "compute_output": _duration(total.request_count, total.request_output_seconds),
            "cache_hit": _duration(cache.hits, cache.hit_lookup_seconds),
            "cache_miss": _duration(cache.misses, cache.miss_lookup_seconds),
        },
        "batch_stats": [_batch_size(rows, sizes[rows]) for rows in sorted(sizes)],
        "memory_usage": [],
        "response_stats": {},
        "batches_left": costs.left,
    }


def _batch_size(rows: int, total: Totals) -> dict[str, object]:
    return {
        "batch_size": rows,
        "compute_input": _duration(total.execution_count, total.input_seconds),
        "compute_infer": _duration(total.execution_count, total.infer_seconds),
        "compute_output": _duration(total.execution_count, total.output_seconds),
    }


def _duration(count: float, seconds: float) -> dict[str, int]:
    return {"count": int(count), "ns": round(1e9 * seconds)}
