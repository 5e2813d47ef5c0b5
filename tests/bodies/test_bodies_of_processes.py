"""Real processes that die while large tensors lie in shared memory: no request fails or is lost."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from echo_models import add_echo
from echo_system import MODEL, EchoSystem
from ferry_processes import free_port, running_gunicorn, running_worker
from waiting import wait_until

from shared.bodies.common_memory import SHARED_MEMORY_ROOT
from shared.request_queue.keys import QueueKeys
from shared.settings import Settings
from shared.wire.client import connect

COUNTS = (100, 70_000, 150_528, 300_000)
CLIENTS, KILLS = 4, 2
ROUNDS, RESETS = 4, 100
DIRECTORY = SHARED_MEMORY_ROOT / f"ferry-{os.getuid()}"


class Served(EchoSystem):
    """A worker and an API process of one machine."""

    def files(self) -> list[Path]:
        """Return what the API processes that listen to the model's answers have beside Redis."""
        answered = QueueKeys(self.settings.key_prefix, f"{MODEL}/1").answered
        channels = self.redis.pubsub_channels(f"{answered}*")
        names = [channel.decode().removeprefix(answered) for channel in channels]
        assert names
        return [file for name in names for file in (DIRECTORY / name).iterdir()]


@pytest.fixture(scope="module")
def served(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    models = tmp_path_factory.mktemp("models")
    add_echo(models, "UINT8", dims="[-1]", max_batch_size=0)
    settings = Settings(
        redis_url=redis_url,
        key_prefix="shared-bodies",
        models=str(models),
        port=free_port(),
        api_processes=1,
        heartbeat_seconds=0.5,
    )
    with running_worker(settings), running_gunicorn(settings) as gunicorn:
        yield Served(settings, connect(redis_url), gunicorn.pid)


def left_by_the_dead() -> list[str]:
    """Return the folders that nobody holds."""
    found = []
    for folder in DIRECTORY.iterdir():
        if folder.is_dir():
            with suppress(OSError):
                descriptor = os.open(folder, os.O_RDONLY)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    found.append(folder.name)
                finally:
                    os.close(descriptor)
    return found


def test_redis_holds_next_to_nothing_of_a_large_request(served: Served) -> None:
    assert served.ask(150_528, 0)  # the registry is read by now
    instance = served.instance()
    os.kill(instance, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(served.ask, 150_528, 1)
            wait_until(served.bodies, 20, "a body in Redis")
            sizes = served.bodies()
            os.kill(instance, signal.SIGCONT)
            assert asked.result()
    finally:
        os.kill(instance, signal.SIGCONT)
    assert max(sizes) < 500


def test_an_answer_beside_redis_is_written_as_json_too(served: Served) -> None:
    assert served.ask(70_000, 5, binary=False)


def test_instances_that_are_killed_cost_no_large_request_its_answer(served: Served) -> None:
    done = Event()

    def ask_on(client: int) -> list[bool]:
        answers = list[bool]()
        while not done.is_set():
            seed = 10_000 * client + len(answers)
            answers.append(served.ask(COUNTS[seed % len(COUNTS)], seed))
        return answers

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients: list[Future[list[bool]]] = [pool.submit(ask_on, n) for n in range(CLIENTS)]
        try:
            for _ in range(KILLS):
                victim = served.instance()
                os.kill(victim, signal.SIGKILL)
                wait_until(lambda gone=victim: served.instance() != gone, 30, "another one")
        finally:
            done.set()
        answers = [answer for client in clients for answer in client.result()]

    assert len(answers) > KILLS
    assert all(answers)


def test_connections_that_are_reset_leave_nothing_beside_redis(served: Served) -> None:
    data = np.random.default_rng(6).bytes(150_528)
    assert served.ask(150_528, 6)
    os.kill(instance := served.instance(), signal.SIGSTOP)  # so that they wait
    try:
        for _ in range(ROUNDS):
            asking = [served.asked(data) for _ in range(RESETS)]
            wait_until(lambda: len(served.files()) == RESETS, 20, "all are beside Redis")
            for connection in asking:
                linger = struct.pack("ii", 1, 0)
                connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                connection.close()
            wait_until(lambda: not served.files(), 20, "all bodies are freed")
    finally:
        os.kill(instance, signal.SIGCONT)
    wait_until(lambda: not served.bodies(), 20, "nothing waits in Redis")
    assert served.ask(150_528, 7)


def test_what_a_killed_api_process_had_is_removed(served: Served) -> None:
    assert served.ask(150_528, 2)
    (victim,) = served.api_processes()
    os.kill(served.instance(), signal.SIGSTOP)  # what is asked now is not answered
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(served.ask, 150_528, 3)
        wait_until(served.bodies, 20, "a body in Redis")
        os.kill(victim, signal.SIGKILL)
        with pytest.raises((OSError, HTTPException)):
            asked.result()
    os.kill(served.instance(), signal.SIGCONT)

    wait_until(lambda: served.api_processes() - {victim}, 30, "another API process")
    wait_until(lambda: not left_by_the_dead(), 20, "the supervisor removes its folder")
    wait_until(lambda: not served.bodies(), 30, "what nobody waits for is done")
    assert served.ask(150_528, 4)
