"""What a batch cost is counted where its answers are handed out, each request once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

import numpy as np
import pytest
from fake_backend import FakeBackend, claimed, doubled, fake_spec
from google.protobuf import json_format
from redis import Redis
from tritonclient.grpc import service_pb2

from api.infer.triton_statistics import model_statistics, of_triton
from shared.courier.pending import PushArguments
from shared.datatypes import Array
from shared.request_queue.claimed import Claimed, EncodedResults
from shared.request_queue.commands import cancel_command, push_command
from shared.request_queue.keys import QueueKeys
from shared.request_queue.limits import Limits
from shared.request_queue.model_statistics import REASONS, Pass, encode_costs
from shared.request_queue.recovery import recover
from shared.request_queue.worker_end import WorkQueue
from shared.settings import Settings
from shared.ticket import ASYNCHRONOUS
from shared.wire.client import connect
from shared.wire.wire import open_wire
from worker.backends.base import Backend
from worker.instance.batch import answer_batch
from worker.instance.out_of_memory import PiecewiseBackend
from worker.meter import Meter

MODEL = fake_spec()
POISON = -1.0
NOTHING = {"count": 0, "ns": 0}
_numbers = count()


class Queue:
    """One model version's queue, pushed to and claimed from by the test."""

    def __init__(self, redis: Redis, prefix: str) -> None:
        self.redis = redis
        self.prefix = prefix
        self.keys = QueueKeys(prefix, MODEL.key)
        self.wire = open_wire(redis)
        self.work = WorkQueue(self.wire, self.keys, "i", result_ttl_seconds=5.0)

    def claim(self, *values: float, timeout: float = 10.0, rows: int = 1) -> list[Claimed]:
        """Push a request of so many rows for each of `values` and claim them all."""
        for value in values:
            name = f"{ASYNCHRONOUS}{next(_numbers):024x}"
            body = claimed(name, np.full((rows, 2), value, np.float32)).body
            push = PushArguments(name, rows, 1, bytes(8), timeout, 10_000, body)
            self.wire.send(push_command(self.keys, Limits(), [push]))
            assert self.wire.reply() == [b"queued"]
        return self.work.claim_now(32, 0.0)[0]

    def answer(self, batch: list[Claimed], backend: Backend) -> None:
        """Answer a batch as a worker does."""
        assert self.work.publish(batch, answer_batch(batch, MODEL, backend, "i")) == len(batch)

    def cancel(self, item: Claimed) -> None:
        self.wire.send(cancel_command(self.keys, "cancelled", [item.id], only_waiting=False))
        self.wire.reply()

    def stats(self) -> Any:
        """Return what an API process would say."""
        (found,) = model_statistics(self.redis, self.prefix, [MODEL])
        return found

    def counts(self) -> tuple[int, int, int, int]:
        """Return rows, executions, successes and failures."""
        stats = self.stats()
        ended = stats["inference_stats"]
        return (
            stats["inference_count"], stats["execution_count"],
            ended["success"]["count"], ended["fail"]["count"],
        )  # fmt: skip

    def sizes(self) -> dict[int, int]:
        """Return how many executions there were of each size."""
        return {
            each["batch_size"]: each["compute_infer"]["count"]
            for each in self.stats()["batch_stats"]
        }


@pytest.fixture
def queue(settings: Settings) -> Iterator[Queue]:
    with connect(settings.redis_url) as redis:
        queue = Queue(redis, settings.key_prefix)
        yield queue
        queue.wire.close()


def in_one_pass(batch: list[Claimed], *phases: float, seconds: float = 0.0) -> EncodedResults:
    """Return answers of a pass whose phases took so long, in a batch that took `seconds`."""
    rows = sum(item.rows for item in batch)
    passes = [Pass(batch, rows, *(phases or (0.0, 0.0, 0.0)))]
    return EncodedResults([b""] * len(batch), encode_costs(batch, passes, seconds))


def duration(number: int, ms: int) -> dict[str, int]:
    return {"count": number, "ns": ms * 1_000_000}


def test_two_batches_of_a_size_add_up_to_figures_worked_out_by_hand(queue: Queue) -> None:
    two, three = queue.claim(1.0, rows=2) + queue.claim(2.0, rows=3)
    first = [
        two._replace(queue_seconds=0.25, claimed_at=1000.5),
        three._replace(queue_seconds=0.5, claimed_at=1000.5),
    ]
    queue.work.publish(first, in_one_pass(first, 0.001, 0.02, 0.003, seconds=0.03))
    (five,) = queue.claim(3.0, rows=5)
    second = [five._replace(queue_seconds=0.125, claimed_at=1000.25)]  # from a slower instance
    queue.work.publish(second, in_one_pass(second, 0.01, 0.1, 0.01, seconds=0.2))

    assert queue.stats() == {
        "name": "fake",
        "version": "1",
        "last_inference": 1_000_500,
        "inference_count": 10,
        "execution_count": 2,
        "inference_stats": {
            "success": duration(3, 250 + 30 + 500 + 30 + 125 + 200),
            "fail": NOTHING,
            "queue": duration(3, 250 + 500 + 125),
            "compute_input": duration(3, 1 + 1 + 10),
            "compute_infer": duration(3, 20 + 20 + 100),
            "compute_output": duration(3, 3 + 3 + 10),
            "cache_hit": NOTHING,
            "cache_miss": NOTHING,
        },
        "batch_stats": [
            {
                "batch_size": 5,
                "compute_input": duration(2, 1 + 10),
                "compute_infer": duration(2, 20 + 100),
                "compute_output": duration(2, 3 + 10),
            }
        ],
        "memory_usage": [],
        "response_stats": {},
        "batches_left": dict.fromkeys(REASONS, 0) | {"greedy": 3},
    }


def test_each_batch_size_stands_by_itself_smallest_first(queue: Queue) -> None:
    for rows in (10, 2, 10, 1):
        queue.answer(queue.claim(1.0, rows=rows), FakeBackend())

    assert list(queue.sizes().items()) == [(1, 1), (2, 1), (10, 2)]
    assert queue.counts() == (23, 4, 4, 0)


def test_what_is_published_again_is_not_counted_again(queue: Queue) -> None:
    batch = queue.claim(1.0, 2.0)
    answers = in_one_pass(batch, 0.001, 0.02, 0.003)
    queue.work.publish(batch, answers)
    before = queue.stats()

    queue.work.publish(batch, answers, drop=False)

    assert queue.stats() == before
    assert queue.counts() == (2, 1, 2, 0)


def test_a_request_cancelled_while_it_runs_is_a_failure_and_its_rows_are_not_counted(
    queue: Queue,
) -> None:
    batch = queue.claim(1.0, 2.0, 3.0)
    queue.cancel(batch[1])

    queue.work.publish(batch, in_one_pass(batch))

    assert queue.counts() == (2, 1, 2, 1)
    assert queue.sizes() == {3: 1}


def test_a_batch_that_nobody_waits_for_any_more_is_not_counted(queue: Queue) -> None:
    batch = queue.claim(1.0)
    queue.cancel(batch[0])

    queue.work.publish(batch, in_one_pass(batch))

    assert queue.counts() == (0, 0, 0, 1)
    assert queue.redis.hkeys(queue.keys.stats) == [b"left_greedy"]


def test_a_request_that_was_closed_is_taken_off_its_own_pass(queue: Queue) -> None:
    small, large = queue.claim(1.0), queue.claim(1.0, rows=2) + queue.claim(1.0, rows=3)
    (failed,) = queue.claim(POISON, rows=7)
    batch = [*small, *large, failed]
    passes = [Pass(small, 1, 0.0, 0.0, 0.0), Pass(large, 5, 0.0, 0.0, 0.0)]
    for item in (large[1], failed):
        queue.cancel(item)

    queue.work.publish(batch, EncodedResults([b""] * 4, encode_costs(batch, passes, 0.0)))

    assert queue.counts() == (1 + 2, 2, 2, 2)
    assert queue.sizes() == {1: 1, 5: 1}
    waited = small[0].queue_seconds + large[0].queue_seconds
    assert queue.stats()["inference_stats"]["queue"]["ns"] == pytest.approx(1e9 * waited, abs=2)


def test_of_a_bisected_batch_the_passes_that_succeeded_are_counted(queue: Queue) -> None:
    queue.answer(queue.claim(0.0, 1.0, 2.0, POISON), FakeBackend(poison=POISON))

    assert queue.counts() == (3, 2, 3, 1)
    assert queue.sizes() == {1: 1, 2: 1}
    assert queue.stats()["inference_stats"]["fail"]["ns"] > 0


def test_a_batch_whose_outputs_are_wrong_is_a_failure_of_each(queue: Queue) -> None:
    queue.answer(queue.claim(0.0, 1.0), FakeBackend(lambda inputs: {}))

    assert queue.counts() == (0, 0, 0, 2)


def test_one_that_cannot_be_decoded_is_a_failure_and_takes_no_neighbour_along(
    queue: Queue,
) -> None:
    bad, good = queue.claim(0.0, 1.0)

    queue.answer([bad._replace(body=b"\xc1"), good], FakeBackend())

    assert queue.counts() == (1, 1, 1, 1)


def test_a_batch_that_memory_has_run_in_pieces_is_one_execution(queue: Queue) -> None:
    def two_rows_fit(inputs: Mapping[str, Array]) -> dict[str, Array]:
        if len(inputs["x"]) > 2:
            raise MemoryError("out of memory")
        return doubled(inputs)

    queue.answer(
        queue.claim(1.0, rows=5), PiecewiseBackend(FakeBackend(two_rows_fit), MODEL, Meter())
    )

    assert queue.counts() == (5, 1, 1, 0)
    assert queue.sizes() == {5: 1}


def test_what_a_worker_measured_adds_up(queue: Queue) -> None:
    queue.answer(queue.claim(1.0, 2.0), FakeBackend())

    stats = queue.stats()
    phases = stats["inference_stats"]
    parts = [
        phases[name]["ns"] for name in ("queue", "compute_input", "compute_infer", "compute_output")
    ]
    assert all(part > 0 for part in parts)
    assert sum(parts) <= phases["success"]["ns"]
    assert phases["compute_infer"]["ns"] == 2 * stats["batch_stats"][0]["compute_infer"]["ns"]
    seconds, _ = queue.redis.time()
    assert 0 <= 1000 * (seconds + 1) - stats["last_inference"] < 60_000


def test_expired_and_given_up_requests_are_failures(queue: Queue) -> None:
    assert queue.claim(1.0, timeout=0.0) == []
    queue.claim(2.0)
    for _ in range(3):
        recover(queue.wire, queue.keys, "i", crashed=True, result_ttl_seconds=5.0)
        queue.claim()

    assert queue.counts() == (0, 0, 0, 2)


def test_a_model_that_was_never_asked_shows_zeros(queue: Queue) -> None:
    stats = queue.stats()

    assert queue.counts() == (0, 0, 0, 0)
    assert (stats["last_inference"], stats["batch_stats"]) == (0, [])
    assert all(each == NOTHING for each in stats["inference_stats"].values())


def test_the_figures_are_what_the_grpc_message_wants(queue: Queue) -> None:
    queue.answer(queue.claim(1.0, rows=3), FakeBackend())

    message = json_format.ParseDict(
        {"model_stats": [of_triton(queue.stats())]}, service_pb2.ModelStatisticsResponse()
    )

    (stats,) = message.model_stats
    assert (stats.inference_count, stats.batch_stats[0].batch_size) == (3, 3)


def test_more_requests_than_a_byte_can_number_are_counted(queue: Queue) -> None:
    batch = [claimed(f"{number:032x}", np.ones((1, 2), np.float32)) for number in range(300)]
    for item in batch:
        queue.redis.set(queue.keys.body + item.id, b"x")
    passes = [Pass([item], 1, 0.0, 0.0, 0.0) for item in batch]

    queue.work.publish(batch, EncodedResults([b""] * 300, encode_costs(batch, passes, 0.0)))

    assert queue.counts() == (300, 300, 300, 0)
