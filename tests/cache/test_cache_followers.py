"""Who asks what is already being computed waits for that answer, whatever becomes of its leader."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cached_queue import PROCESS, CachedQueue
from redis import Redis

from shared.errors import ModelCrashed, ModelFailed, RequestExpired
from shared.request_queue.async_requests import AsyncRequests, new_id
from shared.request_queue.limits import Limits
from shared.settings import Settings
from shared.ticket import ASYNCHRONOUS, IDEMPOTENT
from shared.wire.client import connect


@pytest.fixture
def redis(settings: Settings) -> Iterator[Redis]:
    client = connect(settings.redis_url)
    yield client
    client.close()


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give Redis a minute for a command: what moves 100 MiB takes seconds on a slow machine."""
    for module in ("client", "wire"):
        monkeypatch.setattr(f"shared.wire.{module}.COMMAND_TIMEOUT_SECONDS", 60.0)


@pytest.fixture
def queue(redis: Redis, settings: Settings) -> CachedQueue:
    return CachedQueue(redis, settings.key_prefix, levels=2)


def ids_of(batch: list) -> list[str]:
    return [item.id for item in batch]


def answered_by_next_claim(queue: CachedQueue, request_id: str) -> None:
    """Claim and publish once: now this request is answered."""
    queue.publish(queue.claim())
    assert queue.letter(request_id) == "a"


def test_a_follower_is_not_queued_and_gets_the_leaders_answer(queue: CachedQueue) -> None:
    leader, follower = queue.ask("a"), queue.ask("a")

    batch = queue.claim()
    queue.publish(batch)

    assert ids_of(batch) == [leader]
    assert queue.letter(leader) == queue.letter(follower) == "a"
    assert not queue.result(leader).timings.cached
    assert queue.result(follower).timings.cached
    assert (queue.hits().hits, queue.hits().misses) == (1, 1)


def test_requests_of_one_push_follow_each_other(queue: CachedQueue) -> None:
    pushes = [queue.new_push(letter) for letter in "aab"]

    assert queue.push(pushes) == ["queued", "followed", "queued"]
    assert queue.push(pushes) == ["known"] * 3
    assert queue.client.llen(f"{queue.keys.tag}asked:{pushes[0].digest}") == 2
    assert ids_of(queue.claim()) == [pushes[0].id, pushes[2].id]


def test_the_waiting_process_is_told_of_a_followers_answer(
    queue: CachedQueue, redis: Redis
) -> None:
    leader, follower = queue.ask("a"), queue.ask("a", process="cafecafe")

    queue.publish(queue.claim())

    assert redis.lrange(queue.keys.answered + PROCESS, 0, -1) == [leader.encode()]
    assert redis.lrange(queue.keys.answered + "cafecafe", 0, -1) == [follower.encode()]


def test_a_cancelled_leader_is_followed_by_the_next_one_to_lead(queue: CachedQueue) -> None:
    leader, gone, follower = (queue.ask("a") for _ in range(3))

    assert queue.cancel(gone) == ["waiting"]
    assert queue.cancel(leader) == ["waiting"]

    assert queue.queued() == [follower]
    answered_by_next_claim(queue, follower)
    assert queue.result(leader) is queue.result(gone) is None


def test_a_request_that_leads_after_another_goes_to_the_head(queue: CachedQueue) -> None:
    leader, other, follower = queue.ask("a"), queue.ask("b"), queue.ask("a")

    queue.cancel(leader)

    assert queue.queued() == [follower, other]


def test_the_bell_rings_for_who_leads_after_another(queue: CachedQueue, redis: Redis) -> None:
    leader, _ = queue.ask("a"), queue.ask("a")
    redis.delete(queue.keys.bell)

    queue.cancel(leader)

    assert redis.llen(queue.keys.bell) == 1
    assert int(redis.get(queue.keys.bytes)) == 10


def test_an_expired_leader_is_dropped_by_claim_and_the_next_one_leads(queue: CachedQueue) -> None:
    late, follower = queue.ask("a", timeout=0.0), queue.ask("a")

    assert queue.claim() == []

    assert queue.queued() == [follower]
    assert queue.client.llen(queue.keys.bell) == 1
    answered_by_next_claim(queue, follower)
    result = queue.result(late)
    assert result is not None and isinstance(result.error, RequestExpired)


def test_a_leader_whose_body_expired_by_itself_strands_nobody(queue: CachedQueue) -> None:
    late, follower = queue.ask("a", timeout=0.0), queue.ask("a")
    queue.client.delete(queue.keys.body + late)

    assert queue.claim() == []

    answered_by_next_claim(queue, follower)


def test_a_leader_that_was_cancelled_while_it_ran_answers_its_followers(
    queue: CachedQueue,
) -> None:
    leader, follower = queue.ask("a"), queue.ask("a")
    batch = queue.claim()

    assert queue.cancel(leader, only_waiting=True) == ["running"]
    assert queue.cancel(leader) == ["running"]
    queue.publish(batch)

    assert queue.letter(follower) == "a"
    assert queue.result(leader) is None
    assert queue.claim() == []


def test_a_leader_that_was_cancelled_while_it_ran_and_crashed_strands_nobody(
    queue: CachedQueue,
) -> None:
    leader, follower = queue.ask("a"), queue.ask("a")
    queue.claim()
    queue.cancel(leader)

    queue.crash()

    answered_by_next_claim(queue, follower)


def test_a_leader_that_died_with_its_instance_leads_again(queue: CachedQueue) -> None:
    leader, follower = queue.ask("a"), queue.ask("a")
    queue.claim()

    assert queue.crash() == (1, 0)

    assert queue.queued() == [leader]
    answered_by_next_claim(queue, follower)
    assert queue.letter(leader) == "a"


def test_a_leader_whose_body_expired_while_it_ran_strands_nobody(queue: CachedQueue) -> None:
    leader, follower = queue.ask("a"), queue.ask("a")
    queue.claim()
    queue.client.delete(queue.keys.body + leader)

    assert queue.crash(crashed=False) == (0, 0)

    answered_by_next_claim(queue, follower)


def test_who_follows_a_leader_that_is_given_up_is_given_up_with_it(queue: CachedQueue) -> None:
    ids = [queue.ask("a") for _ in range(3)]

    for _ in range(3):
        queue.claim()
        queue.crash()

    assert [type(queue.result(each).error) for each in ids] == [ModelCrashed] * 3
    assert int(queue.client.hget(queue.keys.counts, "dead")) == 3
    assert queue.queued() == []
    queue.ask("a")
    assert len(queue.claim()) == 1, "the error was kept"


def test_an_error_is_its_followers_as_well_and_is_not_kept(queue: CachedQueue) -> None:
    ids = [queue.ask("a") for _ in range(3)]

    queue.publish(queue.claim(), error=ModelFailed("cannot"))

    assert [str(queue.result(each).error) for each in ids] == ["cannot"] * 3
    assert int(queue.client.hget(queue.keys.stats, "failed")) == 3
    again = queue.ask("a")
    assert ids_of(queue.claim()) == [again]


def test_an_answer_that_is_published_again_is_given_once(queue: CachedQueue) -> None:
    leader, _ = queue.ask("a"), queue.ask("a")
    batch = queue.claim()
    queue.publish(batch)
    queue.client.delete(queue.keys.result + leader)

    queue.publish(batch)

    assert queue.hits().hits == 1
    assert queue.result(leader) is None


def test_a_more_urgent_request_does_not_wait_for_a_less_urgent_one(queue: CachedQueue) -> None:
    slow, urgent = queue.ask("a", level=2), queue.ask("a", level=1)
    follower = queue.ask("a", level=2)

    assert queue.queued() == [urgent, slow]
    queue.publish(queue.claim(max_rows=1))

    assert {queue.letter(each) for each in (slow, urgent, follower)} == {"a"}
    assert queue.claim() == []


def test_whoever_is_computed_first_answers_all(queue: CachedQueue) -> None:
    slow = queue.ask("a", level=2)
    batch = queue.claim()
    urgent, follower = queue.ask("a", level=1), queue.ask("a", level=1)

    queue.publish(batch)

    assert {queue.letter(each) for each in (slow, urgent, follower)} == {"a"}
    assert queue.claim() == []
    assert not queue.client.exists(queue.keys.bytes)


def test_an_error_of_one_that_does_not_lead_is_its_own(queue: CachedQueue) -> None:
    slow = queue.ask("a", level=2)
    batch = queue.claim()
    urgent = queue.ask("a", level=1)

    queue.publish(batch, error=ModelFailed("cannot"))

    assert queue.result(slow).error is not None
    answered_by_next_claim(queue, urgent)


def test_followers_are_bounded_like_what_waits(redis: Redis, settings: Settings) -> None:
    queue = CachedQueue(redis, settings.key_prefix, limits=Limits(requests=3, bytes=100))
    pushes = [queue.new_push("a") for _ in range(5)]
    heavy = [queue.new_push("b", size=45) for _ in range(4)]

    assert queue.push(pushes) == ["queued", *["followed"] * 3, "full 4"]
    assert queue.push(heavy) == ["queued", "followed", "full 2", "full 2"]
    queue.publish(queue.claim())
    assert not redis.exists(f"{queue.keys.tag}followed")


def test_a_version_that_is_leaving_answers_nothing_from_its_cache(queue: CachedQueue) -> None:
    queue.ask("a")
    queue.publish(queue.claim())
    queue.client.set(queue.keys.closed, "1")

    push = queue.new_push("a")
    assert queue.push([push]) == ["closed"]
    assert queue.result(push.id) is None


def test_nobody_follows_where_no_digest_is_given(queue: CachedQueue) -> None:
    pushes = [queue.new_push("a")._replace(digest="") for _ in range(2)]

    assert queue.push(pushes) == ["queued", "queued"]
    queue.publish(queue.claim())

    assert queue.hits().hits == 0


@pytest.mark.usefixtures("patience")
def test_more_than_64_mib_of_answers_are_handed_out_in_several_steps(queue: CachedQueue) -> None:
    ids = [queue.ask("a") for _ in range(5)]
    large = bytes(33 * 2**20)

    queue.publish(queue.claim(), answer=large)
    in_one_step = [each for each in ids if queue.result(each)]
    queue.client.delete(*queue.keys.answers)
    queue.publish(queue.claim(), answer=large)

    assert in_one_step == ids[:3]
    assert [queue.letter(each) for each in ids] == ["a"] * 5


def test_a_redis_that_came_back_empty_is_filled_by_what_waits(queue: CachedQueue) -> None:
    pushes = [queue.new_push("a") for _ in range(3)]
    queue.push(pushes)
    batch = queue.claim()
    for key in queue.client.scan_iter(f"{queue.keys.tag.replace('{', '[{]')}*"):
        queue.client.delete(key)

    assert queue.push(pushes[1:]) == ["queued", "followed"]
    assert queue.push(pushes[:1]) == ["followed"]
    queue.publish(batch)

    assert {queue.letter(push.id) for push in pushes} == {"a"}


@pytest.mark.parametrize("idempotent", [False, True])
def test_an_asynchronous_follower_is_stored_and_found_like_any_other(
    queue: CachedQueue, settings: Settings, idempotent: bool
) -> None:
    requests = AsyncRequests(queue.client, queue.keys, Limits())
    follower = new_id(idempotent=idempotent)
    queue.ask("b")
    leader = queue.ask("a", process=ASYNCHRONOUS)
    queue.push([queue.new_push("a")._replace(id=follower)])

    waiting = requests.state(follower)
    batch = queue.claim()
    running = requests.state(follower)
    queue.publish(batch)

    assert (waiting.what, waiting.ahead) == ("waiting", 1)
    assert running.what == "running"
    assert requests.state(follower).result.timings.cached
    left = queue.client.pttl(queue.keys.result + follower)
    assert left > 3_000_000 if idempotent else 0 < left <= 60_000
    assert IDEMPOTENT != ASYNCHRONOUS and requests.state(leader).what == "done"


def test_an_asynchronous_follower_is_cancelled_while_its_leader_runs(
    queue: CachedQueue,
) -> None:
    leader, follower = queue.ask("a"), queue.ask("a", process=ASYNCHRONOUS)
    batch = queue.claim()

    assert queue.cancel(follower, only_waiting=True) == ["waiting"]
    queue.publish(batch)

    assert queue.result(follower) is None
    assert queue.letter(leader) == "a"


def test_an_asynchronous_follower_is_gone_once_its_deadline_has_passed(queue: CachedQueue) -> None:
    queue.ask("a")
    follower = queue.ask("a", process=ASYNCHRONOUS, timeout=0.0)

    assert AsyncRequests(queue.client, queue.keys, Limits()).state(follower).what == "gone"


def test_an_asynchronous_follower_of_a_late_leader_still_waits(queue: CachedQueue) -> None:
    queue.ask("a", timeout=0.0)
    follower = queue.ask("a", process=ASYNCHRONOUS)

    assert AsyncRequests(queue.client, queue.keys, Limits()).state(follower).what == "waiting"


def test_every_key_of_an_asked_question_expires(queue: CachedQueue) -> None:
    queue.ask("a", ttl_ms=5_000)
    queue.ask("a", ttl_ms=90_000)
    follower = queue.ask("a", ttl_ms=50_000)
    keys = [f"{queue.keys.tag}{kind}:*".replace("{", "[{]") for kind in ("asked", "digest")]
    found = {key: queue.client.pttl(key) for each in keys for key in queue.client.scan_iter(each)}
    found[b"followed"] = queue.client.pttl(f"{queue.keys.tag}followed")

    assert len(found) == 5
    own = found.pop(f"{queue.keys.tag}digest:{follower}".encode())
    assert 5_000 < own <= 50_000
    assert all(50_000 < left <= 90_000 for left in found.values())
