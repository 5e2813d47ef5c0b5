"""Both ends of a queue in one process, and a third who overhears what is said between them."""

from __future__ import annotations

from collections.abc import Iterable
from threading import Event

import pytest
from waiting import wait_until

from shared.courier.sender import Sender
from shared.courier.subscription import Subscription
from shared.messages import InferRequest
from shared.request_queue.api_end import PendingRequest, RequestQueue
from shared.request_queue.claimed import Claimed, EncodedResults
from shared.request_queue.keys import QueueKeys
from shared.request_queue.limits import Limits
from shared.request_queue.model_statistics import encode_costs
from shared.request_queue.worker_end import WorkQueue
from shared.settings import Settings
from shared.wire.client import connect
from shared.wire.wire import Wire, open_wire


def free(results: list[bytes], claimed: list[Claimed]) -> EncodedResults:
    """Return answers that cost nothing."""
    return EncodedResults(results, encode_costs(claimed, [], 0.0))


class TwoEnds:
    """An API process's end and an instance's, of a model of the test's own."""

    def __init__(self, settings: Settings) -> None:
        self.redis = connect(settings.redis_url)
        self.prefix = settings.key_prefix
        self.keys = QueueKeys(settings.key_prefix, "m/1")
        named = connect(f"{settings.redis_url}?client_name={self.prefix}")
        self.queue = RequestQueue(named, self.keys, Limits())
        self._pushed_again = Event()
        self._courier = self.queue._courier
        self.sender = self._courier.sender
        self._watch(self.sender)
        self.channel = self.keys.answered + self.queue.new_id()[:8]
        self.wire = open_wire(self.redis)
        self.work = WorkQueue(self.wire, self.keys, "i", result_ttl_seconds=60.0)

    def push(self, count: int, queue: RequestQueue | None = None) -> list[PendingRequest]:
        """Push requests in this order, and return once they are stored."""
        asked = queue or self.queue
        waiting = [
            asked.push(InferRequest(asked.new_id(), 1, (), (), 20.0, bytes(8)))
            for _ in range(count)
        ]
        wait_until(lambda: all(each.accepted for each in waiting), 10, "all are accepted")
        return waiting

    def claim(self, count: int) -> list[Claimed]:
        """Claim so many requests, once they are there."""
        found: list[Claimed] = []
        wait_until(
            lambda: found.extend(self.work.claim(count - len(found), 0.0)) or len(found) == count,
            10,
            f"{count} requests to claim",
        )
        return found

    def answer(self, *results: bytes) -> None:
        """Claim as many requests and publish these results, as one batch."""
        claimed = self.claim(len(results))
        assert self.work.publish(claimed, free(list(results), claimed)) == len(results)

    def listeners(self) -> int:
        """Return how many connections listen to the API process's channel."""
        ((_, count),) = self.redis.pubsub_numsub(self.channel)
        return int(count)

    def listening(self, count: int = 1) -> None:
        """Wait until so many listen."""
        wait_until(lambda: self.listeners() == count, 10, f"{count} listen")

    def settled(self, listeners: int = 1) -> None:
        """Wait until so many listen, and the courier has pushed again what it waited for before.

        It does so half a second after it first listens, unless a test has it look more rarely.
        """
        self.listening(listeners)
        self._pushed_again.wait(1.5)
        wait_until(lambda: self.sender.is_idle, 10, "it is told")

    def third(self) -> Wire:
        """Return one more listener, who hears what is said from now on."""
        wire = open_wire(self.redis)
        wire.send(("CLIENT", "SETNAME", f"{self.prefix}-third"), ("SUBSCRIBE", self.channel))
        wire.reply()
        wire.reply()
        return wire

    def connections(self, who: str = "") -> set[str]:
        """Return which connections the courier listens on, or the `-third`."""
        listening = self.redis.client_list(_type="pubsub")
        return {client["id"] for client in listening if client["name"] == self.prefix + who}

    def hang_up(self, who: str = "") -> None:
        """Have Redis close the connection that the courier listens on, or the `-third`."""
        (connection,) = self.connections(who)
        self.redis.client_kill_filter(_id=connection)

    def _watch(self, sender: Sender) -> None:
        really_send = sender.send_again

        def send_again(requests: Iterable[PendingRequest]) -> None:
            really_send(requests)
            self._pushed_again.set()

        sender.send_again = send_again  # type: ignore[method-assign]

    def kept(self) -> set[str]:
        """Return the names of all keys of this model, without their common beginning."""
        found = self.redis.scan_iter(f"{self.prefix}:*", count=1000)
        return {key.decode().removeprefix(self.keys.tag) for key in found}

    def close(self) -> None:
        """Leave what both ends have open."""
        self._courier.rest()
        for connection in self.connections():
            self.redis.client_kill_filter(_id=connection)
        self.wire.close()
        self.redis.close()


def bad_one_between(ends: TwoEnds) -> PendingRequest:
    """Return a request whose answer came behind one that cannot be handed out, and came again."""

    def then() -> None:
        raise ValueError("cannot be handed out")

    ends.push(1)
    ends.settled()
    ends.queue.hold(InferRequest(ends.queue.new_id(), 1, (), (), 20.0, bytes(8)), then)
    (behind,) = ends.push(1)  # in the same message
    ends.answer(b"first", b"bad", b"lost")
    ends.answer(b"again")
    return behind


def opened_late(monkeypatch: pytest.MonkeyPatch) -> Event:
    """Return what has to be set before a courier can begin to listen."""
    gate, really_open = Event(), Subscription.open

    def open_late(subscription: Subscription) -> None:
        assert gate.wait(30)
        really_open(subscription)

    monkeypatch.setattr(Subscription, "open", open_late)
    return gate


def result(waiting: PendingRequest) -> bytes | None:
    """Return the encoded result that a request has got, waiting for it."""
    assert waiting.done.wait(15), "no answer came"
    return waiting.result
