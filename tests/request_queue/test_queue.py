"""Every hop of a request through Redis, on the real server: push, claim, publish, recover, wait."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import numpy as np
import pytest
from fake_backend import answered
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from waiting import wait_until

from shared.courier.pending import PushArguments
from shared.errors import ModelCrashed, ModelFailed, QueueFull, RequestExpired, VersionRetired
from shared.messages import InferRequest, InferResult, Tensor
from shared.request_queue.api_end import PendingRequest, RequestQueue
from shared.request_queue.claimed import Claimed, EncodedResults
from shared.request_queue.commands import as_push, push_command
from shared.request_queue.keys import QueueKeys
from shared.request_queue.limits import Limits, Loss
from shared.request_queue.model_statistics import encode_costs
from shared.request_queue.recovery import recover
from shared.request_queue.worker_end import AnswersNotTaken, WorkQueue
from shared.settings import Settings
from shared.wire.client import connect
from shared.wire.wire import Wire, open_wire

MODEL = "m/1"


@pytest.fixture
def redis(settings: Settings) -> Iterator[Redis]:
    client = connect(settings.redis_url)
    yield client
    client.close()


@pytest.fixture
def keys(settings: Settings) -> QueueKeys:
    return QueueKeys(settings.key_prefix, MODEL)


@pytest.fixture
def wire(redis: Redis) -> Iterator[Wire]:
    wire = open_wire(redis)
    yield wire
    wire.close()


@pytest.fixture
def queue(redis: Redis, keys: QueueKeys) -> RequestQueue:
    return api_end(redis, keys)


@pytest.fixture
def work(wire: Wire, keys: QueueKeys) -> WorkQueue:
    return worker_end(wire, keys)


def api_end(redis: Redis, keys: QueueKeys, max_queue_size: int = 100) -> RequestQueue:
    return RequestQueue(redis, keys, Limits(max_queue_size))


def worker_end(wire: Wire, keys: QueueKeys, instance: str = "i") -> WorkQueue:
    return WorkQueue(wire, keys, instance, result_ttl_seconds=60.0)


_numbers = count()


def request(
    queue: RequestQueue, rows: int = 1, *, signature: bytes = bytes(8), timeout: float = 10.0
) -> InferRequest:
    x = np.full((rows, 2), next(_numbers), np.float32)
    return InferRequest(queue.new_id(), rows, (Tensor.of("x", x),), (), timeout, signature)


def push(queue: RequestQueue, request: InferRequest) -> PendingRequest:
    """Push and return once Redis has stored it, so that the order of pushes is known."""
    waiting = queue.push(request)
    wait_until(lambda: waiting.accepted, 5, f"{request.id} accepted")
    return waiting


def push_many(queue: RequestQueue, *rows: int) -> list[PendingRequest]:
    return [push(queue, request(queue, each)) for each in rows]


def ids(batch: list[Claimed] | list[PendingRequest]) -> list[str]:
    return [item.id for item in batch]


def answers(batch: list[Claimed]) -> EncodedResults:
    """Return each request's own inputs as its result."""
    return answered(batch, [InferResult(outputs=item.request().inputs).encode() for item in batch])


def crash(wire: Wire, keys: QueueKeys, instance: str = "i") -> tuple[int, int]:
    return recover(wire, keys, instance, crashed=True, result_ttl_seconds=60.0)


def depth(redis: Redis, keys: QueueKeys) -> int:
    return int(redis.llen(keys.queues[0]))


def test_every_waiter_gets_the_answer_to_its_own_request(
    queue: RequestQueue, work: WorkQueue
) -> None:
    requests = [request(queue) for _ in range(20)]
    waiting = [push(queue, each) for each in requests]

    batch = work.claim(32, 0.0)
    work.publish(batch, answers(batch))

    for each, waiter in zip(requests, waiting, strict=True):
        assert waiter.wait().outputs == each.inputs


def test_requests_are_claimed_oldest_first(queue: RequestQueue, work: WorkQueue) -> None:
    waiting = push_many(queue, 1, 1, 1, 1, 1)

    claimed = work.claim(3, 0.0) + work.claim(3, 0.0)

    assert ids(claimed) == ids(waiting)


def test_a_batch_counts_rows_and_never_exceeds_its_limit(
    queue: RequestQueue, work: WorkQueue
) -> None:
    push_many(queue, 3, 3, 3, 8, 1)

    batches = [[item.rows for item in work.claim(8, 0.0)] for _ in range(4)]

    assert batches == [[3, 3], [3], [8], [1]]


def test_more_requests_than_lua_can_unpack_make_several_batches(
    redis: Redis, keys: QueueKeys, wire: Wire, work: WorkQueue
) -> None:
    ids = [f"{number:032x}" for number in range(9000)]
    for start in range(0, 9000, 250):
        some = [
            PushArguments(each, 1, 1, bytes(8), 10.0, 10_000, b"x")
            for each in ids[start : start + 250]
        ]
        wire.send(push_command(keys, Limits(), some))
        wire.reply()

    batches = [work.claim(9000, 0.0) for _ in range(5)]

    assert [item.id for batch in batches for item in batch] == ids
    assert redis.llen(keys.inflight + "i") == 9000


def test_a_request_of_another_signature_is_a_boundary_not_skipped(
    queue: RequestQueue, work: WorkQueue
) -> None:
    kinds = [b"a" * 8, b"a" * 8, b"b" * 8, b"a" * 8]
    waiting = [push(queue, request(queue, signature=kind)) for kind in kinds]

    batches = [ids(work.claim(32, 0.0)) for _ in range(3)]

    order = ids(waiting)
    assert batches == [order[:2], order[2:3], order[3:]]


def test_an_expired_request_is_skipped_and_closed(
    redis: Redis, keys: QueueKeys, queue: RequestQueue, work: WorkQueue
) -> None:
    late = push(queue, request(queue, timeout=0.05))
    with pytest.raises(RequestExpired, match="Request timeout expired"):
        late.wait()
    alive = push(queue, request(queue))

    batch = work.claim(32, 0.0)

    assert ids(batch) == ids([alive])
    assert not redis.exists(keys.body + late.id)
    assert depth(redis, keys) == 0


def test_expired_requests_take_no_seats_in_a_batch(queue: RequestQueue, work: WorkQueue) -> None:
    for waiter in [push(queue, request(queue, timeout=0.05)) for _ in range(5)]:
        with pytest.raises(RequestExpired):
            waiter.wait()
    alive = push_many(queue, 1, 1)

    assert ids(work.claim(2, 0.0)) == ids(alive)


def test_a_full_queue_refuses_and_the_queue_stays_usable(
    redis: Redis, keys: QueueKeys, work: WorkQueue
) -> None:
    queue = api_end(redis, keys, max_queue_size=2)
    accepted = push_many(queue, 1, 1)

    with pytest.raises(QueueFull, match="Exceeds maximum queue size"):
        queue.push(request(queue)).wait()

    batch = work.claim(32, 0.0)
    assert ids(batch) == ids(accepted)
    work.publish(batch, answers(batch))
    assert accepted[1].wait().outputs
    assert push(queue, request(queue)).accepted


def test_the_same_id_pushed_twice_is_stored_once(
    redis: Redis, keys: QueueKeys, queue: RequestQueue, work: WorkQueue
) -> None:
    twice = request(queue)

    push(queue, twice)
    waiter = push(queue, twice._replace())

    assert depth(redis, keys) == 1
    batch = work.claim(32, 0.0)
    work.publish(batch, answers(batch))
    assert waiter.wait().outputs == twice.inputs


def test_an_id_whose_answer_is_there_already_is_not_run_again(
    redis: Redis, keys: QueueKeys, queue: RequestQueue, wire: Wire
) -> None:
    answered = request(queue)
    redis.set(keys.result + answered.id, InferResult().encode())

    wire.send(push_command(keys, Limits(), [as_push(answered, keys, Limits())]))

    assert wire.reply() == [b"known"]
    assert depth(redis, keys) == 0


def test_an_incomplete_batch_waits_the_delay_less_the_age_of_its_oldest(
    redis: Redis, keys: QueueKeys, queue: RequestQueue, work: WorkQueue, wire: Wire
) -> None:
    push(queue, request(queue))
    none, first_wait = work.claim_now(8, 30.0)
    push(queue, request(queue))
    none_yet, second_wait = work.claim_now(8, 30.0)

    assert none == none_yet == []
    assert 25 < second_wait < first_wait < 30
    assert depth(redis, keys) == 2


def test_a_batch_is_claimed_once_its_oldest_has_waited_the_delay(
    queue: RequestQueue, work: WorkQueue
) -> None:
    waiting = push_many(queue, 1, 1)
    batches: list[list[Claimed]] = []

    wait_until(lambda: batches.append(work.claim(8, 0.2)) or batches[-1], 5, "the delay is over")

    assert ids(batches[-1]) == ids(waiting)
    assert 0.2 <= batches[-1][0].queue_seconds < 1.0


def test_a_full_batch_leaves_before_its_delay_is_over(queue: RequestQueue, work: WorkQueue) -> None:
    push_many(queue, 1, 1, 2)

    batch = work.claim(4, 30.0)

    assert [item.rows for item in batch] == [1, 1, 2]
    assert batch[0].queue_seconds < 5.0


def test_the_bell_never_holds_more_than_one_token(
    redis: Redis, keys: QueueKeys, queue: RequestQueue, work: WorkQueue, wire: Wire
) -> None:
    push_many(queue, 1, 1, 1, 1)
    tokens = [redis.llen(keys.bell)]
    work.claim(1, 0.0)
    tokens.append(redis.llen(keys.bell))
    crash(wire, keys)
    tokens.append(redis.llen(keys.bell))

    assert tokens == [1, 1, 1]


def test_a_claim_that_leaves_work_rings_the_bell_again(
    redis: Redis, keys: QueueKeys, queue: RequestQueue, work: WorkQueue
) -> None:
    push_many(queue, 1, 1)
    redis.delete(keys.bell)

    work.claim(1, 0.0)

    assert redis.llen(keys.bell) == 1


def test_recovered_work_goes_back_to_the_head_in_order_with_one_attempt_more(
    queue: RequestQueue, work: WorkQueue, wire: Wire, keys: QueueKeys
) -> None:
    waiting = push_many(queue, 1, 1, 1)
    held = work.claim(2, 0.0)

    assert crash(wire, keys) == (2, 0)

    batches = [work.claim(32, 0.0) for _ in range(3)]
    assert [item.attempts for item in held] == [1, 1]
    assert [ids(batch) for batch in batches] == [[each] for each in ids(waiting)]
    assert [batch[0].attempts for batch in batches] == [2, 2, 1]


def test_a_request_that_was_in_a_crash_travels_alone(
    queue: RequestQueue, work: WorkQueue, wire: Wire, keys: QueueKeys
) -> None:
    push_many(queue, 1)
    work.claim(32, 0.0)
    crash(wire, keys)
    push_many(queue, 1, 1)

    assert [len(work.claim(32, 0.0)) for _ in range(2)] == [1, 2]


def test_a_request_that_was_in_a_crash_joins_no_batch_before_it(
    redis: Redis, queue: RequestQueue, work: WorkQueue, wire: Wire, keys: QueueKeys
) -> None:
    crashed, fresh = push_many(queue, 1, 1)
    other_wire = open_wire(redis)
    other = worker_end(other_wire, keys, "j")
    work.claim(1, 0.0)
    other.claim(1, 0.0)
    crash(wire, keys)
    other.put_back()
    other_wire.close()

    assert [ids(work.claim(32, 0.0)) for _ in range(2)] == [ids([fresh]), ids([crashed])]


def test_work_put_back_by_a_living_instance_counts_no_attempt(
    queue: RequestQueue, work: WorkQueue
) -> None:
    waiting = push_many(queue, 1, 1)
    work.claim(32, 0.0)

    assert work.put_back() == (2, 0)

    again = work.claim(32, 0.0)
    assert ids(again) == ids(waiting)
    assert [item.attempts for item in again] == [1, 1]


def test_after_three_crashes_the_waiter_is_told(
    queue: RequestQueue, work: WorkQueue, wire: Wire, keys: QueueKeys
) -> None:
    (waiter,) = push_many(queue, 1)

    outcomes = []
    for _ in range(3):
        assert len(work.claim(32, 0.0)) == 1
        outcomes.append(crash(wire, keys))

    assert outcomes == [(1, 0), (1, 0), (0, 1)]
    with pytest.raises(ModelCrashed, match="died 3 times"):
        waiter.wait()


def test_two_supervisors_that_recover_the_same_instance_put_its_work_back_once(
    redis: Redis, keys: QueueKeys, queue: RequestQueue, work: WorkQueue, wire: Wire
) -> None:
    push_many(queue, 1, 1, 1)
    work.claim(32, 0.0)
    other = open_wire(redis)

    outcomes = {crash(wire, keys), crash(other, keys)}

    other.close()
    assert outcomes == {(3, 0), (0, 0)}
    assert depth(redis, keys) == 3


def test_a_second_answer_to_a_request_is_not_delivered(
    redis: Redis, keys: QueueKeys, queue: RequestQueue, work: WorkQueue, wire: Wire
) -> None:
    (waiter,) = push_many(queue, 1)
    slow = work.claim(32, 0.0)
    crash(wire, keys)  # taken for dead while it is only slow
    other_wire = open_wire(redis)
    second = worker_end(other_wire, keys, "j")
    fast = second.claim(32, 0.0)
    first = answered(fast, [InferResult(error=ModelFailed("the first")).encode()])

    published = second.publish(fast, first), work.publish(slow, answers(slow))

    assert published == (1, 0)
    with pytest.raises(ModelFailed, match="the first"):
        waiter.wait()
    other_wire.close()
    assert not redis.exists(keys.result + waiter.id)


def test_an_answer_closes_the_ticket_that_a_recovery_had_put_back(
    redis: Redis, keys: QueueKeys, queue: RequestQueue, work: WorkQueue, wire: Wire
) -> None:
    push_many(queue, 1)
    slow = work.claim(32, 0.0)
    crash(wire, keys)
    work.publish(slow, answers(slow))
    alive = push_many(queue, 1)

    assert ids(work.claim(32, 0.0)) == ids(alive)


def test_publish_and_claim_hands_out_one_batch_and_takes_the_next(
    redis: Redis, keys: QueueKeys, queue: RequestQueue, work: WorkQueue
) -> None:
    waiting = push_many(queue, 2, 2)
    first = work.claim(2, 0.0)

    second = work.publish_and_claim(first, answers(first), 2, 0.0)

    assert ids(first + second) == ids(waiting)
    assert waiting[0].wait().outputs
    assert redis.llen(keys.inflight + "i") == 1


def test_publish_and_claim_ahead_takes_what_is_full_and_never_waits(
    redis: Redis, keys: QueueKeys, queue: RequestQueue, work: WorkQueue
) -> None:
    waiting = push_many(queue, 2, 2, 1)
    first = work.claim(2, 0.0)

    second = work.publish_and_claim(first, answers(first), 2, 0.0, ahead=True)
    assert ids(first + second) == ids(waiting[:2])
    assert work.publish_and_claim(second, answers(second), 2, 0.0, ahead=True) == []  # it may grow

    assert [bool(each.wait().outputs) for each in waiting[:2]] == [True, True]
    assert not redis.exists(keys.inflight + "i")


def test_a_refused_publish_before_a_claim_ahead_is_told(
    redis: Redis, keys: QueueKeys, queue: RequestQueue, work: WorkQueue
) -> None:
    push_many(queue, 1, 1, 1)
    batch = work.claim(1, 0.0)
    redis.set(keys.answered + batch[0].id[:8], "not a list")
    large = EncodedResults([bytes(10_000)], encode_costs(batch, [], 0.0))  # stored, not said

    with pytest.raises(AnswersNotTaken):
        work.publish_and_claim(batch, large, 1, 0.0, ahead=True)

    assert redis.llen(keys.inflight + "i") == 2


def test_a_refused_publish_does_not_mix_up_the_replies_that_follow(
    redis: Redis, keys: QueueKeys, queue: RequestQueue, work: WorkQueue
) -> None:
    push_many(queue, 1, 1)
    batch = work.claim(1, 0.0)
    redis.set(keys.answered + batch[0].id[:8], "not a list")
    large = EncodedResults([bytes(10_000)], encode_costs(batch, [], 0.0))  # stored, not said

    with pytest.raises(AnswersNotTaken):
        work.publish_and_claim(batch, large, 1, 0.0)

    assert work.publish([], answers([])) == 0


def test_wires_load_the_scripts_again_after_the_server_forgot_them(
    redis: Redis, queue: RequestQueue, work: WorkQueue
) -> None:
    push_many(queue, 1)
    work.put_back()
    redis.script_flush()

    with pytest.raises(RedisConnectionError):
        work.claim(1, 0.0)
    redis.script_flush()
    (waiter,) = push_many(queue, 1)

    batch: list[Claimed] = []
    wait_until(lambda: batch.extend(work.claim(1, 0.0)) or len(batch) == 2, 15, "both are there")
    work.publish(batch, answers(batch))
    assert waiter.wait().outputs


def test_every_key_but_the_documented_ones_expires(
    redis: Redis, keys: QueueKeys, queue: RequestQueue, work: WorkQueue, wire: Wire
) -> None:
    for _ in range(2):  # each of an API process of its own, which is gone: nobody fetches an answer
        pushed = as_push(request(api_end(redis, keys)), keys, Limits())
        wire.send(push_command(keys, Limits(), [pushed]))
        wire.reply()
    for _ in range(3):
        work.claim(1, 0.0)
        crash(wire, keys)
    batch = work.claim(1, 0.0)
    work.publish(batch, answers(batch))
    push_many(queue, 1, 1)
    work.claim(1, 0.0)

    found = _keys(redis, keys)

    assert sum(key.startswith(keys.result) for key in found) == 2
    assert sum(key.startswith(keys.answered) for key in found) == 2
    forever = {key for key in found if redis.ttl(key) == -1}
    assert forever == {
        keys.queues[0], keys.bytes, keys.bell, keys.inflight + "i", keys.counts, keys.stats,
        keys.dead,
    }  # fmt: skip


def test_after_everything_is_answered_only_the_bell_and_the_statistics_remain(
    redis: Redis, keys: QueueKeys, queue: RequestQueue, work: WorkQueue, wire: Wire
) -> None:
    waiting = push_many(queue, 1, 1, 1)
    work.claim(1, 0.0)
    crash(wire, keys)
    for _ in range(2):
        batch = work.claim(32, 0.0)
        work.publish(batch, answers(batch))
    for waiter in waiting:
        waiter.wait()

    assert _keys(redis, keys) - {keys.bell} == {keys.stats, keys.counts}


def test_a_push_wakes_a_worker_that_waits(
    redis: Redis, queue: RequestQueue, work: WorkQueue
) -> None:
    with ThreadPoolExecutor(1) as worker:
        batch = worker.submit(work.claim, 32, 0.0)
        wait_until(lambda: any(c["cmd"] == "blpop" for c in redis.client_list()), 5, "it waits")
        waiter = queue.push(request(queue))

        # On a slow machine the wait of half a second may be over just before the push.
        claimed = batch.result(timeout=30) or work.claim(32, 0.0)

    assert ids(claimed) == ids([waiter])
    assert claimed[0].queue_seconds < 2.0


def _keys(redis: Redis, keys: QueueKeys) -> set[str]:
    pattern = keys.queue.removesuffix("queue:") + "*"
    return {key.decode() for key in redis.scan_iter(match=pattern)}


@pytest.mark.parametrize(
    ("elsewhere", "refused"), [("", ()), ("unnamed", (False,)), ("all", (False, True))]
)
def test_requests_that_go_elsewhere_are_refused(
    redis: Redis, keys: QueueKeys, queue: RequestQueue, elsewhere: str, refused: tuple[bool, ...]
) -> None:
    if elsewhere:
        redis.set(keys.elsewhere, elsewhere)
    for named in (False, True):
        timeout = 30.0 if named in refused else 0.3
        waiting = queue.push(request(queue, timeout=timeout)._replace(named=named))
        with pytest.raises(VersionRetired if named in refused else RequestExpired):
            waiting.wait()


def test_a_request_that_was_accepted_is_known_whoever_goes_elsewhere(
    redis: Redis, keys: QueueKeys, wire: Wire
) -> None:
    pushed = as_push(request(api_end(redis, keys)), keys, Limits())
    statuses = []
    for _ in range(2):
        wire.send(push_command(keys, Limits(), [pushed]))
        statuses += wire.reply()
        redis.set(keys.elsewhere, "all")

    assert statuses == [b"queued", b"known"]


def test_a_batch_is_claimed_ahead_only_when_it_cannot_grow(
    queue: RequestQueue, work: WorkQueue, redis: Redis, keys: QueueKeys
) -> None:
    waiting = push_many(queue, 1)
    assert work.claim_ahead(2, 0.0) == []
    assert depth(redis, keys) == 1
    waiting += push_many(queue, 1, 1)
    assert ids(work.claim_ahead(2, 0.0)) == ids(waiting[:2])
    assert work.left_behind == 1
    waiting.append(push(queue, request(queue, signature=b"anothers")))
    assert ids(work.claim_ahead(2, 0.0)) == ids(waiting[2:3])
    assert work.claim_ahead(2, 60.0) == []
    found: list[Claimed] = []
    wait_until(lambda: found.extend(work.claim_ahead(2, 0.01)) or found, 10, "its delay is over")


def test_an_instance_that_waits_for_the_bell_is_idle_and_one_that_is_busy_is_not(
    redis: Redis, keys: QueueKeys, work: WorkQueue
) -> None:
    assert not work.has_idle_peer()
    redis.delete(keys.bell)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(redis.blpop, keys.bell, 30)
        wait_until(lambda: redis.info("clients")["blocked_clients"], 10, "it waits")

        assert work.has_idle_peer()
        assert waiting.result(30)


def test_of_two_batches_that_an_instance_leaves_behind_an_attempt_counts_for_the_one_that_ran(
    redis: Redis, keys: QueueKeys, queue: RequestQueue, work: WorkQueue, wire: Wire
) -> None:
    waiting = push_many(queue, 1, 1, 1, 1)
    work.claim(2, 0.0)
    worker_end(open_wire(redis), keys, "i+").claim_ahead(2, 0.0)

    loss = Loss(untouched="i+")
    assert recover(wire, keys, "i", crashed=True, result_ttl_seconds=60.0, loss=loss) == (4, 0)

    back = [work.claim(32, 0.0) for _ in range(3)]  # who was in a crash travels alone
    assert [item.attempts for batch in back for item in batch] == [2, 2, 1, 1]
    assert [ids(batch) for batch in back] == [
        [waiting[0].id], [waiting[1].id], ids(waiting[2:]),
    ]  # fmt: skip
