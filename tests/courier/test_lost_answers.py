"""What was said and not heard is asked for again; what Redis did not take is given again."""

from __future__ import annotations

import logging
import re
import time
from dataclasses import replace

import pytest
from two_ends import TwoEnds, bad_one_between, free, opened_late, result
from waiting import wait_until

from shared.courier import courier, subscription
from shared.courier.subscription import Subscription
from shared.request_queue.claimed import Claimed, EncodedResults
from shared.request_queue.worker_end import AnswersNotTaken
from shared.settings import Settings
from shared.wire.client import connect
from shared.wire.packing import Command
from shared.wire.scripts import script_text
from shared.wire.wire import Wire
from worker.instance import loop
from worker.meter import Meter


@pytest.fixture
def short_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a subscription be given up after 0.3 s of silence instead of 5.5."""
    monkeypatch.setattr(subscription, "QUIET_SECONDS", 0.1)
    monkeypatch.setattr(subscription, "COMMAND_TIMEOUT_SECONDS", 0.2)


def only_claim_is_known(ends: TwoEnds) -> None:
    """Have Redis refuse the next publish and take the claim behind it."""
    ends.redis.script_flush()
    ends.redis.script_load(script_text("claim"))


def test_an_answer_that_was_said_to_a_lost_connection_is_computed_again(
    ends: TwoEnds, monkeypatch: pytest.MonkeyPatch
) -> None:
    (waiting,) = ends.push(1)
    ends.settled()
    gate = opened_late(monkeypatch)
    deaf = ends.third()  # as a connection that is gone and whose end Redis has not seen

    ends.hang_up()
    ends.listening(1)
    ends.answer(b"lost")
    assert not [key for key in ends.kept() if key.startswith(("result:", "answered:"))]
    gate.set()
    ends.answer(b"again")

    deaf.close()
    assert result(waiting) == b"again"


def test_an_answer_that_was_stored_meanwhile_is_not_computed_again(
    ends: TwoEnds, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, other = ends.push(2)
    ends.settled()
    gate = opened_late(monkeypatch)

    ends.hang_up()
    ends.listening(0)
    ends.answer(b"stored", b"too")
    assert ends.redis.delete(ends.channel) == 1  # whatever became of the announcement
    gate.set()

    assert (result(waiting), result(other)) == (b"stored", b"too")
    ends.listening()
    assert not ends.redis.exists(*ends.keys.queues)


def test_a_quiet_connection_is_asked_for_a_word_and_kept(
    ends: TwoEnds, short_silence: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (waiting,) = ends.push(1)
    ends.settled()
    before, asked, really_ask = ends.connections(), list[Subscription](), Subscription.ask

    def ask(one: Subscription) -> None:
        if one.channel == ends.channel:
            asked.append(one)
        really_ask(one)

    monkeypatch.setattr(Subscription, "ask", ask)
    wait_until(lambda: len(asked) > 8, 10, "more than two silences")

    assert ends.connections() == before
    ends.answer(b"heard")
    assert result(waiting) == b"heard"


def test_a_silent_subscription_is_given_up_and_opened_anew(
    ends: TwoEnds,
    short_silence: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "shared.courier.courier")
    (waiting,) = ends.push(1)
    ends.settled()
    before, really_send = ends.connections(), Wire.send_behind

    def send(wire: Wire, *commands: Command) -> None:
        if commands != (("PING",),):
            really_send(wire, *commands)

    with monkeypatch.context() as deaf:
        deaf.setattr(Wire, "send_behind", send)
        wait_until(lambda: not ends.connections() & before, 10, "it is given up")
    wait_until(lambda: "Redis is back, 1 requests wait on" in caplog.messages, 10, "it is back")

    assert "Redis says nothing any more" in caplog.text
    ends.answer(b"heard")
    assert result(waiting) == b"heard"


def test_an_answer_that_cannot_be_handed_out_stops_none_behind_it(ends: TwoEnds) -> None:
    assert result(bad_one_between(ends)) == b"again"


def test_a_user_who_may_not_listen_finds_the_answers_stored(settings: Settings) -> None:
    admin, name = connect(settings.redis_url), settings.key_prefix
    rights = ("on", ">word", "~*", "resetchannels", "+@all")
    admin.execute_command("ACL", "SETUSER", name, *rights)
    try:
        url = re.sub("//(.*@)?", f"//{name}:word@", settings.redis_url)
        ends = TwoEnds(replace(settings, redis_url=url))
        waiting = ends.push(2)

        ends.answer(b"one", bytes(10_000))

        assert [result(each) for each in waiting] == [b"one", bytes(10_000)]
        assert ends.listeners() == 0
        ends.close()
    finally:
        admin.acl_deluser(name)
        admin.close()


def test_after_a_rest_another_subscription_is_opened(
    ends: TwoEnds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courier, "IDLE_SECONDS", 0.2)
    seen: set[str] = set()
    for answer in (b"first", b"second"):
        (waiting,) = ends.push(1)
        ends.settled()
        seen |= ends.connections()
        ends.answer(answer)
        assert result(waiting) == answer
        ends.listening(0)

    assert len(seen) == 2


def test_a_publish_without_a_reply_keeps_the_connection(ends: TwoEnds) -> None:
    waiting = ends.push(2)
    claimed = ends.claim(1)
    before = ends.wire.plain_socket()

    claimed = ends.work.publish_and_claim(claimed, free([b"one"], claimed), 1, 0.0)
    ends.work.publish(claimed, free([b"two"], claimed))

    assert [result(each) for each in waiting] == [b"one", b"two"]
    assert ends.wire.plain_socket() is before is not None


def test_a_publish_that_failed_unseen_is_noticed_by_the_claim_behind_it(ends: TwoEnds) -> None:
    waiting = ends.push(2)
    ends.listening()
    claimed = ends.claim(1)
    only_claim_is_known(ends)

    with pytest.raises(AnswersNotTaken, match="Redis did not take them"):
        ends.work.publish_and_claim(claimed, free([b"answer"], claimed), 1, 0.0)

    assert waiting[0].is_open
    assert ends.redis.llen(ends.keys.inflight + "i") == 2


def test_a_publish_that_failed_unseen_is_noticed_when_nothing_else_waits(ends: TwoEnds) -> None:
    ends.push(1)
    claimed = ends.claim(1)
    only_claim_is_known(ends)

    with pytest.raises(AnswersNotTaken):
        ends.work.publish_and_claim(claimed, free([b"answer"], claimed), 1, 0.0)


def test_answers_that_redis_did_not_take_are_given_again_and_not_computed_again(
    ends: TwoEnds, caplog: pytest.LogCaptureFixture
) -> None:
    waiting = ends.push(3)
    ends.settled()
    computed, began = list[str](), time.monotonic()

    def answer(claimed: list[Claimed]) -> EncodedResults:
        if not computed:
            only_claim_is_known(ends)
        computed.extend(item.id for item in claimed)
        return free([item.id.encode() for item in claimed], claimed)

    def all_answered() -> bool:
        is_late = time.monotonic() > began + 15
        return is_late or not any(each.is_open for each in waiting)

    loop.run(ends.work, answer, all_answered, Meter(), max_rows=1, max_delay_seconds=0.0)

    ids = [each.id for each in waiting]
    assert [result(each) for each in waiting] == [request_id.encode() for request_id in ids]
    assert computed == ids
    assert "the answers are still in flight, Redis did not take them" in caplog.text
    assert not ends.redis.exists(ends.keys.inflight + "i")
