"""Real processes, and body stores that die while large tensors lie in them: no request fails."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from threading import Event

import pytest
from echo_models import add_echo
from echo_system import EchoSystem
from ferry_processes import free_port, running_gunicorn, running_worker
from store_server import StoreServer, store_servers
from waiting import wait_until

from shared.settings import Settings
from shared.wire.client import connect

COUNTS = (100, 70_000, 150_528, 300_000)
CLIENTS = 4


@dataclass(frozen=True)
class Served(EchoSystem):
    """A worker and an API process that share no memory, as on two machines, but two stores."""

    servers: list[StoreServer]
    log: Path

    def stored(self) -> int:
        """Return how much lies in the stores."""
        return sum(len(server.bodies()) for server in self.servers)

    def uses_stores(self) -> None:
        """Wait until large requests go by the stores, there and back."""

        def looks() -> bool:
            before = self.commands()
            assert self.ask(150_528, 0)
            return self.commands() - before >= 2

        wait_until(looks, 30, "requests by way of stores")
        wait_until(lambda: not self.stored(), 10, "nothing is left of these")

    def commands(self) -> int:
        found = [server.redis.info("commandstats") for server in self.servers]
        return sum(
            each.get(f"cmdstat_{name}", {}).get("calls", 0) for each in found for name in ("mget",)
        )


@pytest.fixture(scope="module")
def served(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    models = tmp_path_factory.mktemp("models")
    add_echo(models, "UINT8", dims="[-1]", max_batch_size=0)
    with store_servers(2) as servers:
        settings = Settings(
            redis_url=redis_url,
            key_prefix="body-stores",
            models=str(models),
            port=free_port(),
            api_processes=1,
            heartbeat_seconds=0.5,
            shared_body_bytes=0,
            body_urls=",".join(server.url for server in servers),
        )
        log = tmp_path_factory.mktemp("log") / "gunicorn.log"
        with running_worker(settings), running_gunicorn(settings, log) as gunicorn:
            yield Served(settings, connect(redis_url), gunicorn.pid, servers, log)


@pytest.fixture(autouse=True)
def _no_answer_is_slow(served: Served) -> Iterator[None]:
    """Redis never fails here, so nobody has a reason to listen to it anew."""
    yield
    assert "answers are slow" not in served.log.read_text()


def test_large_requests_pass_the_stores_and_redis_holds_next_to_nothing(served: Served) -> None:
    served.uses_stores()
    instance = served.instance()
    os.kill(instance, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(served.ask, 150_528, 1)
            wait_until(served.bodies, 20, "a body in Redis")
            sizes, count = served.bodies(), served.stored()
            os.kill(instance, signal.SIGCONT)
            assert asked.result()
    finally:
        os.kill(instance, signal.SIGCONT)
    assert max(sizes) < 500
    assert count == 1
    wait_until(lambda: not served.stored(), 10, "nothing is left")


def test_an_answer_in_a_store_is_written_as_json_too(served: Served) -> None:
    served.uses_stores()
    assert served.ask(70_000, 5, binary=False)


@pytest.mark.parametrize("how", ["killed", "hanging"])
def test_a_store_that_fails_under_load_costs_no_request_its_answer(
    served: Served, how: str
) -> None:
    served.uses_stores()
    done = Event()

    def ask_on(client: int) -> list[bool]:
        answers = list[bool]()
        while not done.is_set():
            seed = 10_000 * client + len(answers)
            answers.append(served.ask(COUNTS[seed % len(COUNTS)], seed))
        return answers

    victim = served.servers[0]
    with ThreadPoolExecutor(CLIENTS) as pool:
        clients: list[Future[list[bool]]] = [pool.submit(ask_on, n) for n in range(CLIENTS)]
        try:
            for _ in range(2):
                time.sleep(0.5)  # under way, and later in the middle of what is refused
                victim.kill() if how == "killed" else victim.hang()
                time.sleep(0.7)
                victim.start() if how == "killed" else victim.go_on()
        finally:
            done.set()
        answers = [answer for client in clients for answer in client.result()]

    assert len(answers) > 20
    assert all(answers)
    wait_until(lambda: not served.stored(), 20, "nothing is left in stores")


def test_what_a_killed_instance_had_read_is_asked_again(served: Served) -> None:
    served.uses_stores()
    victim = served.instance()
    os.kill(victim, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(served.ask, 150_528, 3)
        wait_until(served.stored, 20, "a body in a store")
        os.kill(victim, signal.SIGKILL)
        assert asked.result()
    wait_until(lambda: not served.stored(), 20, "nothing is left in stores")


def test_what_a_killed_api_process_had_expires(served: Served) -> None:
    served.uses_stores()
    (victim,) = served.api_processes()
    os.kill(served.instance(), signal.SIGSTOP)  # what is asked now is not answered
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(served.ask, 150_528, 3)
        wait_until(served.stored, 20, "a body in a store")
        os.kill(victim, signal.SIGKILL)
        with suppress(OSError, HTTPException):
            assert not asked.result()
    os.kill(served.instance(), signal.SIGCONT)

    wait_until(lambda: served.api_processes() - {victim}, 30, "another API process")
    wait_until(lambda: not served.bodies(), 30, "what nobody waits for is done")
    left = [(server, key) for server in served.servers for key in server.bodies()]
    assert left
    longest = served.settings.request_timeout_seconds + served.settings.max_batch_seconds + 60
    assert all(0 < server.redis.ttl(key) <= longest for server, key in left)
    for server, key in left:
        server.redis.delete(key)
    served.uses_stores()
