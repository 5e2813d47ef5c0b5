"""An instance's loop: claim, answer, publish, stop, and a Redis that fails in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from shared.errors import ModelFailed
from shared.messages import InferResult
from shared.request_queue.claimed import Claimed, EncodedResults
from shared.request_queue.refusals import MAX_REFUSALS
from shared.request_queue.worker_end import WorkQueue
from worker.instance import loop
from worker.meter import Meter


class FakeQueue:
    """Hands out batches as a WorkQueue does and keeps what was published.

    `fail` is asked before every command, by name, and raises for those that are to be lost. A
    batch with the result `refused` is not taken.
    """

    def __init__(self, batches: list[list[Claimed]], fail: Callable[[str], None]) -> None:
        self.batches = batches
        self.fail = fail
        self.published: dict[str, bytes] = {}
        self.put_back_count = 0
        self.claimed_up_to: list[int] = []
        self.refused = b"refused"
        self.refusal: RedisError = RedisConnectionError("Redis closed the connection")

    def claim(self, max_rows: int, max_delay_seconds: float) -> list[Claimed]:
        self.fail("claim")
        self.claimed_up_to.append(max_rows)
        return self.batches.pop(0) if self.batches else []

    def publish(self, claimed: list[Claimed], answers: EncodedResults, *, drop: bool = True) -> int:
        self.fail("publish")
        if self.refused in answers.results:
            raise self.refusal
        ids = [item.id for item in claimed]
        self.published |= dict(zip(ids, answers.results, strict=True))
        return len(claimed)

    def publish_and_claim(
        self,
        claimed: list[Claimed],
        answers: EncodedResults,
        max_rows: int,
        max_delay_seconds: float,
    ) -> list[Claimed]:
        self.fail("publish_and_claim")
        self.publish(claimed, answers)
        return self.claim(max_rows, max_delay_seconds)

    def probe(self) -> None:
        self.fail("probe")

    def put_back(self) -> tuple[int, int]:
        self.fail("put_back")
        self.put_back_count += 1
        return 0, 0


def never(_: str) -> None:
    """Let every command through."""


def losing(*commands: str) -> Callable[[str], None]:
    """Fail the named commands, each once."""
    left = list(commands)

    def fail(command: str) -> None:
        if command in left:
            left.remove(command)
            raise RedisConnectionError("gone")

    return fail


def item(request_id: str) -> Claimed:
    return Claimed(request_id, 1, 1, 0.0, b"")


def free(results: list[bytes]) -> EncodedResults:
    """Return answers that cost nothing."""
    return EncodedResults(results, (b"", b""))


def echo(batch: list[Claimed]) -> EncodedResults:
    """Answer each request with its id."""
    return free([each.id.encode() for each in batch])


def serve(
    queue: FakeQueue,
    stop: Callable[[], bool],
    answer: Callable[[list[Claimed]], EncodedResults] | None = None,
) -> Meter:
    """Run the loop until `stop`; return the meter that the supervisor would read."""
    meter = Meter()
    loop.run(cast(WorkQueue, queue), answer or echo, stop, meter, max_rows=8, max_delay_seconds=0.0)
    return meter


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "RETRY_SECONDS", 0.0)


def test_every_batch_is_answered_and_published() -> None:
    queue = FakeQueue([[item("a"), item("b")], [], [item("c")]], never)

    meter = serve(queue, lambda: len(queue.published) == 3)

    assert queue.published == {"a": b"a", "b": b"b", "c": b"c"}
    assert (meter.answered_count, meter.batch_count, meter.last_batch_rows) == (3, 2, 1)


def test_the_batch_in_hand_is_published_before_it_stops() -> None:
    stopping: list[bool] = []
    queue = FakeQueue([[item("a")], [item("b")]], never)

    def answer(batch: list[Claimed]) -> EncodedResults:
        stopping.append(True)  # SIGTERM comes during the forward pass
        return free([b"answer"])

    serve(queue, lambda: bool(stopping), answer)

    assert queue.published == {"a": b"answer"}
    assert len(queue.batches) == 1


def test_told_to_stop_before_it_began_it_claims_nothing() -> None:
    queue = FakeQueue([[item("a")]], never)

    serve(queue, lambda: True)

    assert len(queue.batches) == 1


def test_the_clock_runs_while_a_batch_is_computed() -> None:
    queue = FakeQueue([[item("a")]], never)
    meter = Meter()
    seen: list[float] = []

    def answer(batch: list[Claimed]) -> EncodedResults:
        seen.append(meter.busy_since)
        return free([b""])

    loop.run(
        cast(WorkQueue, queue), answer, lambda: bool(seen), meter, max_rows=8, max_delay_seconds=0.0
    )

    assert seen[0] > 0.0
    assert meter.busy_since == 0.0
    assert meter.last_batch_seconds > 0.0


def test_what_it_claims_is_no_more_than_memory_holds() -> None:
    queue = FakeQueue([[item("a")], [item("b")], [item("c")]], never)
    meter, limits = Meter(), iter([3, 0, 0])

    def answer(batch: list[Claimed]) -> EncodedResults:
        meter.row_limit = next(limits)
        return free([b""])

    loop.run(
        cast(WorkQueue, queue), answer, lambda: len(queue.published) == 3, meter,
        max_rows=8, max_delay_seconds=0.0,
    )  # fmt: skip

    assert queue.claimed_up_to[:3] == [8, 3, 8]


def test_after_a_lost_claim_what_it_may_hold_is_put_back() -> None:
    queue = FakeQueue([[item("a")]], losing("claim"))

    serve(queue, lambda: bool(queue.published))

    assert queue.put_back_count == 1
    assert queue.published == {"a": b"a"}


def test_answers_whose_publish_was_lost_are_published_again_and_not_computed_again() -> None:
    queue = FakeQueue([[item("a")], [item("b")]], losing("publish_and_claim", "publish"))
    computed: list[str] = []

    def answer(batch: list[Claimed]) -> EncodedResults:
        computed.extend(each.id for each in batch)
        return echo(batch)

    serve(queue, lambda: "b" in queue.published, answer)

    assert queue.published == {"a": b"a", "b": b"b"}
    assert computed == ["a", "b"]
    assert queue.put_back_count == 1


def test_it_stops_while_redis_is_away_and_leaves_its_work_to_the_supervisor() -> None:
    def away(command: str) -> None:
        if command != "claim":
            raise RedisConnectionError("gone")

    queue = FakeQueue([[item("a")]], away)
    looks = iter([False, False, False, False])

    serve(queue, lambda: next(looks, True))

    assert queue.published == {}
    assert queue.put_back_count == 0


@pytest.mark.parametrize(
    "refusal", [RedisConnectionError("hung up"), ResponseError("ERR Protocol error")]
)
def test_answers_that_redis_never_takes_become_errors_and_the_next_batch_runs(
    refusal: RedisError,
) -> None:
    queue = FakeQueue([[item("a"), item("refused")], [item("b")]], never)
    queue.refusal = refusal

    serve(queue, lambda: "b" in queue.published)

    for request_id in ("a", "refused"):
        assert isinstance(InferResult.decode(queue.published[request_id]).error, ModelFailed)
    assert queue.published["b"] == b"b"


@pytest.mark.parametrize(
    ("refusal", "probe"),
    [
        (RedisConnectionError("hung up"), RedisConnectionError("away")),
        (ResponseError("READONLY You can't write against a read only replica."), None),
    ],
)
def test_answers_wait_as_long_as_redis_is_away_or_takes_no_writes(
    refusal: RedisError, probe: RedisError | None
) -> None:
    tries: list[str] = []

    def fail(command: str) -> None:
        if command == "publish":
            tries.append(command)
            queue.refused = b"nothing" if len(tries) > 3 * MAX_REFUSALS else b"refused"
        if command == "probe" and probe is not None:
            raise probe

    queue = FakeQueue([[item("refused")]], fail)
    queue.refusal = refusal

    serve(queue, lambda: bool(queue.published))

    assert queue.published == {"refused": b"refused"}
