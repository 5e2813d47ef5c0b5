"""Answers and their costs, of each model version: the counts that publish.lua makes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from redis import Redis

from shared.exposition.families import BY_VERSION, Family, Figures, Filled, cumulative
from shared.model_spec import ModelSpec
from shared.request_queue.model_statistics import LATENCY_BOUNDS, ModelCosts, read_costs

NOT_ANSWERED = {
    "failed": "failed",
    "crashed": "dead",
    "expired": "expired",
    "cancelled": "cancelled",
    "queue_timeout": "rejected",
    "queue_full": "full",
}
"""What became of a request that was not answered, and where that is counted."""
REJECTIONS = ("queue_full", "queue_timeout", "expired", "cancelled")
TRITON_REASONS = {
    "BACKEND": ("failed", "dead"),
    "CANCELED": ("cancelled",),
    "OTHER": ("expired",),
    "REJECTED": ("rejected", "full"),
}
"""Triton's reasons for a failure, and what it calls so here."""
BATCH_BOUNDS = tuple(2**exponent for exponent in range(11))
PREDICTIONS = Family(
    "counter", "predictions", "Requests by their outcome.", (*BY_VERSION, "outcome")
)  # fmt: skip
LATENCY = Family(
    "histogram",
    "prediction_latency_seconds",
    "Time from the push of a request to its answer, of those that the model computed.",
    BY_VERSION,
)
BATCH_ROWS = Family("histogram", "ferry_batch_rows", "Rows of a forward pass.", BY_VERSION)
BATCHES_LEFT = Family(
    "counter", "ferry_batches_left", "Batches that left the queue, by why.", (*BY_VERSION, "reason")
)
PHASES = Family(
    "counter",
    "ferry_request_seconds",
    "Time of answered requests: in the queue, waiting for their batch, computed, and given out.",
    (*BY_VERSION, "phase"),
)
REJECTED_REQUESTS = Family(
    "counter",
    "ferry_requests_rejected",
    "Requests that were never computed, by why.",
    (*BY_VERSION, "reason"),
)
RETRIED = Family(
    "counter",
    "ferry_requests_retried",
    "Requests that were put back since their instance died.",
    BY_VERSION,
)
DEAD_REQUESTS = Family(
    "counter",
    "ferry_requests_dead",
    "Requests that were given up since instances died under them.",
    BY_VERSION,
)
CACHE_REQUESTS = Family(
    "counter",
    "ferry_cache_requests",
    "Requests to models with a response cache: answered from it, or not.",
    (*BY_VERSION, "result"),
)
TRITON_FAILURES = Family(
    "plain",
    "nv_inference_request_failure",
    "Number of failed inference requests, all batch sizes",
    ("model", "reason", "version"),
)
TRITONS: dict[Family, Callable[[ModelCosts], float]] = {
    Family("plain", f"nv_inference_{name}", text, BY_VERSION): read
    for name, text, read in (
        (
            "request_success",
            "Number of successful inference requests, all batch sizes",
            lambda costs: costs.total.request_count + costs.cache.hits,
        ),
        (
            "count",
            "Number of inferences performed (does not include cached requests)",
            lambda costs: costs.total.row_count,
        ),
        (
            "exec_count",
            "Number of model executions performed (does not include cached requests)",
            lambda costs: costs.total.execution_count,
        ),
        (
            "request_duration_us",
            "Cumulative inference request duration in microseconds (includes cached requests)",
            lambda costs: 1e6 * (costs.total.request_seconds + costs.cache.hit_seconds),
        ),
        (
            "queue_duration_us",
            "Cumulative inference queuing duration in microseconds (includes cached requests)",
            lambda costs: 1e6 * (costs.total.queue_seconds + costs.cache.hit_seconds),
        ),
        (
            "compute_input_duration_us",
            "Cumulative compute input duration in microseconds (does not include cached requests)",
            lambda costs: 1e6 * costs.total.request_input_seconds,
        ),
        (
            "compute_infer_duration_us",
            "Cumulative compute inference duration in microseconds "
            "(does not include cached requests)",
            lambda costs: 1e6 * costs.total.request_infer_seconds,
        ),
        (
            "compute_output_duration_us",
            "Cumulative inference compute output duration in microseconds "
            "(does not include cached requests)",
            lambda costs: 1e6 * costs.total.request_output_seconds,
        ),
    )
}
"""Source: https://github.com/triton-inference-server/server/blob/main/docs/user_guide/metrics.md"""


class PredictionFigures(Figures):
    """What was asked of each version so far, as long as Redis keeps it."""

    families = (
        PREDICTIONS, LATENCY, BATCH_ROWS, BATCHES_LEFT, PHASES, REJECTED_REQUESTS, RETRIED,
        DEAD_REQUESTS, CACHE_REQUESTS, TRITON_FAILURES, *TRITONS,
    )  # fmt: skip

    def __init__(
        self, client: Redis, prefix: str, versions: Callable[[], Iterable[ModelSpec]]
    ) -> None:
        """Ask `client` at each scrape, of all `versions` that there are then."""
        self._client = client
        self._prefix = prefix
        self._versions = versions

    def fill(self, families: Filled) -> None:
        """Add the figures of all versions; raises RedisUnavailable."""
        specs = list(self._versions())
        costs = read_costs(self._client, self._prefix, specs)
        for spec, each in zip(specs, costs, strict=True):
            _add_counts(families, [spec.name, spec.version], each, cached=spec.cached)
            _add_histograms(families, [spec.name, spec.version], each)
            _add_tritons(families, spec, each)


def _add_counts(families: Filled, row: list[str], costs: ModelCosts, *, cached: bool) -> None:
    total, ended = costs.total, costs.ended
    answered = total.request_count + costs.cache.hits
    outcomes = {"success": answered} | {name: ended[at] for name, at in NOT_ANSWERED.items()}
    phases = {
        "queue": total.queue_seconds,
        "wait": total.request_input_seconds,
        "compute": total.request_infer_seconds,
        "output": total.request_output_seconds,
    }
    by_label: dict[Family, Mapping[str, float]] = {
        PREDICTIONS: outcomes,
        PHASES: phases,
        BATCHES_LEFT: costs.left,
        REJECTED_REQUESTS: {reason: ended[NOT_ANSWERED[reason]] for reason in REJECTIONS},
        CACHE_REQUESTS: {"hit": costs.cache.hits, "miss": costs.cache.misses} if cached else {},
    }
    for family, values in by_label.items():
        for label, value in values.items():
            families[family.name].add_metric([*row, label], float(value))
    families[RETRIED.name].add_metric(row, float(ended["retried"]))
    families[DEAD_REQUESTS.name].add_metric(row, float(ended["dead"]))


def _add_histograms(families: Filled, row: list[str], costs: ModelCosts) -> None:
    families[LATENCY.name].add_metric(
        row, cumulative(LATENCY_BOUNDS, costs.latencies), costs.total.request_seconds
    )
    counts = [0] * (len(BATCH_BOUNDS) + 1)
    for rows, total in costs.by_size.items():
        counts[sum(bound < rows for bound in BATCH_BOUNDS)] += int(total.execution_count)
    families[BATCH_ROWS.name].add_metric(
        row, cumulative(BATCH_BOUNDS, counts), costs.total.row_count
    )


def _add_tritons(families: Filled, spec: ModelSpec, costs: ModelCosts) -> None:
    for family, read in TRITONS.items():
        families[family.name].add_metric([spec.name, spec.version], float(read(costs)))
    for reason, names in TRITON_REASONS.items():
        count = float(sum(costs.ended[name] for name in names))
        families[TRITON_FAILURES.name].add_metric([spec.name, reason, spec.version], count)
