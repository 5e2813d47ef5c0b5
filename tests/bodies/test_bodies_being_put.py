"""A request counts, may expire and be cancelled while its tensors are put beside Redis."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from threading import Event, Thread
from typing import NamedTuple

import numpy as np
import pytest
from hostile_store import HostileStore, hostile_store
from two_ends import TwoEnds
from waiting import wait_until

from shared.bodies.folder import Budget
from shared.bodies.stored import BodyShelf, StoredBodies
from shared.bodies.stores import BodyStores
from shared.errors import ClientLeft, FerryError, RequestExpired
from shared.messages import InferRequest, Tensor
from shared.request_queue.api_end import PendingRequest, RequestQueue
from shared.request_queue.limits import Limits

BUDGET_BYTES = 100_000
LONGEST_SECONDS = 0.45
"""A store that is silent for longer is away."""


class Putting(NamedTuple):
    """A queue whose store takes a body once `may_take` is set, or soon."""

    ends: TwoEnds
    queue: RequestQueue
    budget: Budget
    store: HostileStore
    may_take: Event
    pushed: list[PendingRequest]

    def push(self, seconds: float = 60.0, client: socket.socket | None = None) -> Thread:
        """Push a large request, elsewhere; returns once its body is on its way."""
        tensor = Tensor.of("x", np.zeros((1, BUDGET_BYTES), np.uint8))
        request = InferRequest(self.queue.new_id(), 1, (tensor,), (), seconds, bytes(8))
        thread = Thread(target=lambda: self.pushed.append(self.queue.push(request, client)))
        thread.start()
        wait_until(lambda: b"SET" in self.store.asked, 10, "its body is on its way")
        return thread

    def under_way(self) -> PendingRequest:
        (found,) = self.queue._courier._waiting.values()
        return found

    def ended_by(self, error: type[FerryError]) -> None:
        """Check that what was pushed ended so, is not in Redis, and keeps nothing."""
        (waiting,) = self.pushed
        with pytest.raises(error):
            waiting.wait()
        wait_until(lambda: b"UNLINK" in self.store.asked, 10, "its body is removed")
        assert self.budget.take(BUDGET_BYTES)
        assert not waiting.sent
        assert self.ends.redis.get(self.ends.keys.body + waiting.id) is None
        assert self.queue.waiting == 0


@pytest.fixture
def putting(ends: TwoEnds) -> Iterator[Putting]:
    with hostile_store() as server:
        stores, budget, may_take = BodyStores.of(server.url, "p"), Budget(BUDGET_BYTES), Event()
        assert stores is not None
        token = stores.token

        def reply(command: list[bytes]) -> bytes:
            if len(command) > 2 and len(command[2]) >= BUDGET_BYTES:
                may_take.wait(LONGEST_SECONDS)
            return b"+OK\r\n"

        server.reply = reply
        bodies = StoredBodies(stores, budget, lambda _: token)
        queue = RequestQueue(ends.redis, ends.keys, Limits(), None, bodies)
        yield Putting(ends, queue, budget, server, may_take, [])
        queue._courier.rest()


def test_it_counts_among_those_that_wait(putting: Putting) -> None:
    thread = putting.push()

    assert putting.queue.waiting == 1
    assert putting.queue.waiting_on(1) == 1
    assert not putting.under_way().sent
    putting.may_take.set()
    thread.join()
    (waiting,) = putting.pushed
    wait_until(lambda: waiting.accepted, 10, "it is pushed")
    assert putting.queue.waiting == 1
    assert len(putting.ends.redis.get(putting.ends.keys.body + waiting.id)) < 300


def test_one_that_expires_meanwhile_is_not_pushed(putting: Putting) -> None:
    putting.push(seconds=0.1).join()

    putting.ended_by(RequestExpired)


def test_one_whose_client_leaves_meanwhile_is_not_pushed(putting: Putting) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        peer = socket.create_connection(server.getsockname())
        client, _ = server.accept()
    with client:
        thread = putting.push(client=client)
        peer.close()
        thread.join()

        putting.ended_by(ClientLeft)


def test_one_that_is_cancelled_meanwhile_is_not_pushed(putting: Putting) -> None:
    thread = putting.push()
    putting.under_way().cancel()
    putting.may_take.set()
    thread.join()

    putting.ended_by(ClientLeft)


def test_one_that_cannot_be_put_is_forgotten(
    putting: Putting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put(*_: object) -> None:
        raise KeyboardInterrupt  # as a greenlet is ended

    monkeypatch.setattr(BodyShelf, "put", put)
    tensor = Tensor.of("x", np.zeros((1, BUDGET_BYTES), np.uint8))
    request = InferRequest(putting.queue.new_id(), 1, (tensor,), (), 60.0, bytes(8))
    with pytest.raises(KeyboardInterrupt):
        putting.queue.push(request)

    assert putting.queue.waiting == 0
