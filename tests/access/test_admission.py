"""A key's rate and its requests under way, counted in Redis for all processes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from test_api_keys import made
from waiting import wait_until

from shared.access.admission import Admission
from shared.access.keys import AccessKeys
from shared.errors import RateLimited, RedisUnavailable
from shared.settings import Settings
from shared.wire.client import connect


def processes(settings: Settings, count: int = 2) -> list[Admission]:
    return [Admission(connect(settings.redis_url), settings.key_prefix) for _ in range(count)]


def test_a_rate_holds_for_all_processes_together(settings: Settings) -> None:
    key, _ = made(rate="4/h")
    first, second = processes(settings)

    for one in (first, second, first, second):
        with one.place(key, 1.0):
            pass
    with pytest.raises(RateLimited, match="rate of 4/h") as raised, first.place(key, 1.0):
        pass

    assert raised.value.retry_after_seconds is not None
    assert 890 <= raised.value.retry_after_seconds <= 900
    assert first.counts() | second.counts() == {(key.id, "admitted"): 4, (key.id, "rate"): 1}


def test_a_rate_comes_back_with_time(settings: Settings) -> None:
    key, _ = made(rate="2/s")
    (one,) = processes(settings, 1)

    def is_let_in() -> bool:
        try:
            with one.place(key, 1.0):
                return True
        except RateLimited:
            return False

    wait_until(lambda: not is_let_in(), 30, "the rate is used up")
    wait_until(is_let_in, 30, "the next request is let in")


def test_so_many_are_under_way_and_a_place_comes_back(settings: Settings) -> None:
    key, _ = made(concurrency=2)
    first, second = processes(settings)

    with ExitStack() as held:
        held.enter_context(first.place(key, 1.0))
        held.enter_context(second.place(key, 1.0))
        with pytest.raises(RateLimited, match="2 requests under way"), first.place(key, 1.0):
            pass
    with first.place(key, 1.0), second.place(key, 1.0):
        pass
    assert not connect(settings.redis_url).exists(AccessKeys(settings.key_prefix).active(key.id))


def test_the_places_of_a_process_that_died_come_back(settings: Settings) -> None:
    key, _ = made(concurrency=1)
    first, second = processes(settings)
    first._take(key, "left behind", -59.99)  # its lease is over in 10 ms

    def is_let_in() -> bool:
        try:
            with second.place(key, 1.0):
                return True
        except RateLimited:
            return False

    wait_until(is_let_in, 30, "the place of the dead process is free")


def test_other_keys_have_rates_of_their_own(settings: Settings) -> None:
    busy, other = made("busy", rate="1/d")[0], made("other", rate="1/d")[0]
    (one,) = processes(settings, 1)

    with one.place(busy, 1.0), one.place(other, 1.0), pytest.raises(RateLimited):
        one._take(busy, "another", 1.0)


def test_counts_are_written_by_themselves(settings: Settings) -> None:
    key, _ = made()
    first, second = processes(settings)

    with first.place(key, 1.0):
        pass

    wait_until(lambda: second.counts() == {(key.id, "admitted"): 1}, 30, "the count is in Redis")


def test_counts_of_many_threads_come_in_full_while_they_are_read(settings: Settings) -> None:
    key, _ = made()
    (one,) = processes(settings, 1)
    with ThreadPoolExecutor(8) as threads:
        for _ in range(8):
            threads.submit(lambda: [one.count(key, "admitted") for _ in range(2000)])
        for _ in range(50):
            one.counts()

    assert one.counts() == {(key.id, "admitted"): 16_000}


def test_counts_wait_for_a_redis_that_is_away(settings: Settings) -> None:
    key, _ = made()
    (one,) = processes(settings, 1)
    client, one._counts._client = one._counts._client, connect("redis://127.0.0.1:1")
    one.count(key, "admitted")
    with pytest.raises(RedisUnavailable):
        one.counts()
    one._counts._client = client
    one.count(key, "admitted")

    assert one.counts() == {(key.id, "admitted"): 2}


@hypothesis_settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 999_999_999), unit=st.sampled_from("smhd"),
    concurrency=st.integers(0, 1_000_000), seconds=st.floats(0, 3600),
)  # fmt: skip
def test_any_limit_that_a_key_may_have_lets_its_first_request_in(
    redis_url: str, count: int, unit: str, concurrency: int, seconds: float
) -> None:
    key, _ = made(rate=f"{count}/{unit}", concurrency=concurrency)
    one = Admission(connect(redis_url), "any-limit")

    with one.place(key, seconds):
        pass
    if count == 1:
        with pytest.raises(RateLimited), one.place(key, seconds):
            pass
