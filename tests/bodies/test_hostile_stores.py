"""Whatever a body store answers, and however slowly: nothing raises, waits for ever or ends."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from threading import Thread, current_thread, main_thread
from threading import enumerate as all_threads
from typing import Any

import numpy as np
import pytest
from ferry_processes import ROOT
from hostile_store import GARBAGE, HostileStore, hostile_store
from two_ends import TwoEnds
from waiting import wait_until

from shared.bodies.folder import Budget
from shared.bodies.store import COMMAND_SECONDS, MAX_WIRES, PLACE_SECONDS, Store
from shared.bodies.stored import BodyShelf, StoredBodies
from shared.bodies.stores import BodyStores
from shared.messages import BodyReference, Buffers, InferRequest, Tensor
from shared.request_queue.api_end import RequestQueue
from shared.request_queue.limits import Limits
from shared.wire.wire import Wire

ID = "0" * 32
BUDGET_BYTES = 4_000_000


@pytest.fixture
def server() -> Iterator[HostileStore]:
    with hostile_store() as found:
        yield found


def stores_of(server: HostileStore) -> BodyStores:
    found = BodyStores.of(server.url, "p")
    assert found is not None
    return found


def only(stores: BodyStores) -> Store:
    (store,) = stores
    return store


def request(request_id: str = ID, count: int = 100_000) -> InferRequest:
    inputs = (Tensor.of("x", np.zeros((1, count), np.uint8)),)
    return InferRequest(request_id, 1, inputs, (), 60.0, bytes(8))


REPLIES = {
    "garbage": lambda command: GARBAGE,
    "short": lambda command: b"*0\r\n",
    "numbers": lambda command: b"*1\r\n:7\r\n",
    "nested": lambda command: b"*1\r\n*1\r\n$1\r\na\r\n",
    "map of a list": lambda command: b"%1\r\n*0\r\n+a\r\n",
    "an error": lambda command: b"-NOPERM no\r\n",
    "an error in a list": lambda command: b"*1\r\n-NOPERM no\r\n",
    "nothing": lambda command: b"$-1\r\n",
}


@pytest.mark.parametrize("what", REPLIES)
def test_whatever_it_replies_nothing_raises_and_nothing_is_read(
    server: HostileStore, what: str
) -> None:
    stores, budget = stores_of(server), Budget(BUDGET_BYTES)
    server.reply = REPLIES[what]
    shelf = BodyShelf(StoredBodies(stores, budget, lambda _: stores.token), "p", "m", 1.0)
    message = BodyReference(b"abcd", 10, only(stores).id).before(b"")

    assert stores.read([(ID, message)]) == [None]
    assert shelf.put(request()) is None
    assert shelf.put(request()) is None
    shelf.tidy()

    assert budget.take(BUDGET_BYTES), "nothing of it is kept"


def test_a_connection_on_which_more_may_come_is_not_used_again(server: HostileStore) -> None:
    store = only(stores_of(server))
    server.reply = lambda _: b"+one\r\n+two\r\n"
    store.ask(("EXISTS", "x"))
    server.reply = lambda _: b"+three\r\n"

    assert store.ask(("EXISTS", "x")) == [b"three"]


def test_who_is_ended_in_the_middle_keeps_nothing_and_leaves_its_connection_to_nobody(
    server: HostileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = Wire._next_reply

    def ended(wire: Wire) -> Any:
        if current_thread() is main_thread():
            raise KeyboardInterrupt  # as a greenlet is
        return really(wire)

    stores, budget = stores_of(server), Budget(BUDGET_BYTES)
    shelf = BodyShelf(StoredBodies(stores, budget, lambda _: stores.token), "p", "m", 1.0)
    with monkeypatch.context() as patched:
        patched.setattr(Wire, "_next_reply", ended)
        for _ in range(MAX_WIRES + 1):
            with pytest.raises(KeyboardInterrupt):
                shelf.put(request())
    server.reply = lambda _: b"+two\r\n"

    assert budget.take(BUDGET_BYTES)
    assert only(stores).ask(("EXISTS", "x")) == [b"two"]


def test_a_reply_that_trickles_is_waited_for_a_second_at_most(server: HostileStore) -> None:
    store = only(stores_of(server))
    server.drips = b"$1000000\r\n" + 100 * b"x"
    threads = [
        Thread(target=store.ask, args=(("EXISTS", "x"),), daemon=True) for _ in range(MAX_WIRES + 1)
    ]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert time.monotonic() - began < 2 * COMMAND_SECONDS + 0.5
    assert store.is_away


def test_who_finds_all_connections_taken_goes_without_the_store(server: HostileStore) -> None:
    store = only(stores_of(server))
    begun = [store.begin(("EXISTS", "x")) for _ in range(MAX_WIRES)]
    began = time.monotonic()

    assert store.ask(("EXISTS", "x")) == []
    assert PLACE_SECONDS <= time.monotonic() - began < PLACE_SECONDS + 0.5
    assert not store.is_away
    assert [store.replies(each) for each in begun] == MAX_WIRES * [[b"OK"]]
    assert store.ask(("EXISTS", "x")) == [b"OK"]


PROGRAM = """
from gevent.monkey import patch_all
patch_all()
import json, sys
from shared.bodies.store import Store
from shared.messages import Buffers
store = Store(sys.argv[1])
replies = store.ask(("SET", "x", Buffers([bytes(int(sys.argv[2]))])))
print(json.dumps([replies == [b"OK"], store.is_away]))
"""


def set_in_gevent(server: HostileStore, count: int) -> tuple[bool, bool]:
    """Tell whether a body of so many bytes was taken, and whether the store is away then."""
    command = [sys.executable, "-c", PROGRAM, server.url, str(count)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120, check=True)
    is_taken, is_away = json.loads(ran.stdout)
    return is_taken, is_away


def test_a_large_body_has_the_time_that_it_needs(server: HostileStore) -> None:
    server.bytes_per_second = 80e6

    assert set_in_gevent(server, 60_000_000) == (True, False)


def test_a_large_body_that_takes_too_long_goes_through_redis_alone(server: HostileStore) -> None:
    server.bytes_per_second = 5e6

    assert set_in_gevent(server, 30_000_000) == (False, False)


def test_a_store_that_hangs_behind_a_large_body_is_away(server: HostileStore) -> None:
    store = only(stores_of(server))
    server.drips = b"x"
    server.bytes_per_second = 1e3

    assert store.ask(("SET", "x", Buffers([bytes(5_000_000)]))) == []
    assert store.is_away


def test_a_full_store_is_told_of_once(
    server: HostileStore, caplog: pytest.LogCaptureFixture
) -> None:
    store = only(stores_of(server))
    for _ in range(3):
        assert not store.took(b"OOM")
    assert caplog.text.count("OOM") == 1
    assert store.took(b"OK")
    store.took(b"OOM")
    assert caplog.text.count("OOM") == 2


def slow(_: list[bytes]) -> bytes:
    time.sleep(0.4)
    return b"+OK\r\n"


@pytest.mark.parametrize("reply", [slow, REPLIES["garbage"]])
def test_small_requests_are_heard_of_beside_a_store_that_misbehaves(
    ends: TwoEnds, server: HostileStore, reply: object
) -> None:
    stores = stores_of(server)
    bodies = StoredBodies(stores, Budget(BUDGET_BYTES), lambda _: stores.token)
    queue = RequestQueue(ends.redis, ends.keys, Limits(), None, bodies)
    seconds, others = list[float](), all_threads()
    for number in range(20):
        if number == 10:
            server.reply = reply  # type: ignore[assignment]
        Thread(target=lambda: queue.push(request(queue.new_id())).cancel(), daemon=True).start()
        began = time.monotonic()
        waiting = queue.push(request(queue.new_id(), 10))
        wait_until(partial(getattr, waiting, "accepted"), 10, "it is accepted")
        seconds.append(time.monotonic() - began)
        waiting.cancel()
        time.sleep(0.1)  # the store is tidied meanwhile

    sound, beside = sorted(seconds[:10]), sorted(seconds[10:])
    assert beside[7] < 0.1 + 2 * sound[7], "on a busy machine all takes longer"
    names = [thread.name for thread in all_threads() if thread not in others]
    assert names.count("ferry-fetch") == names.count("ferry-cancel") == 1
    queue._courier.rest()
