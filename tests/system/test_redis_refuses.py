"""Redis full, read-only, loading, out of disk or hung: 503 with a reason, and back by itself."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answers import answer, refusal
from counting_model import CountingModel, counting_model, tensor, v2
from flask.testing import FlaskClient
from waiting import wait_until
from werkzeug.test import TestResponse

from api.app import create_app
from ferry.cli import main
from ferry.errors import EXIT_BAD_USAGE
from ferry.up.embedded_valkey import EmbeddedValkey, spawn, wait_until_answers
from shared.datatypes import Array
from shared.model_spec import TensorSpec
from shared.registry import catalog
from shared.request_queue.recovery import recover
from shared.settings import Settings
from shared.wire.wire import open_wire

DISK_FULL = "Errors writing to the AOF file: File too large"
PREDICT, INFER = "/predict/fake", "/v2/models/fake/infer"
WAYS: dict[str, tuple[str, Any, dict[str, str]]] = {
    "predict": (PREDICT, tensor(9.0), {}),
    "infer": (INFER, v2(9.0), {}),
    "asynchronous": (PREDICT, tensor(9.0), {"Prefer": "respond-async"}),
    "idempotent": (INFER, v2(9.0), {"Idempotency-Key": "k"}),
}

WRITE_A_THOUSAND = "for i = 1, 1000 do redis.call('SET', 'ballast:' .. i, 'x') end"


def start_ignoring_limits(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a server that gets an error from the file system at a limit, not a signal.

    Python ignores SIGXFSZ, and `restore_signals` would undo that for its children.
    """
    return subprocess.Popen(command, start_new_session=True, restore_signals=False, **options)


class Troubled:
    """An API and a model on a Valkey of their own, which gets into trouble."""

    def __init__(
        self, servers: list[EmbeddedValkey], settings: Settings, model: CountingModel
    ) -> None:
        self.servers = servers
        self.redis = model.redis
        self.model = model
        self.app = create_app(settings)
        self._pool = ThreadPoolExecutor(8)

    @property
    def server(self) -> EmbeddedValkey:
        """The server that runs now."""
        return self.servers[-1]

    @property
    def client(self) -> FlaskClient:
        return self.app.test_client()

    def ask(self, value: float, **headers: str) -> Future[TestResponse]:
        post = self.client.post
        return self._pool.submit(post, PREDICT, json=tensor(value), headers=headers)

    def two_waiting(self) -> list[Future[TestResponse]]:
        """Have one request run and one wait until the gate is opened."""
        self.model.gate.clear()
        asked = [self.ask(1.0)]
        wait_until(self.model.busy, 5, "the first is in flight")
        asked.append(self.ask(2.0))
        wait_until(lambda: self.model.depth() == 1, 5, "the second waits")
        return asked

    def refuses(self, reason: str) -> bool:
        """Tell whether every way to ask is refused, quickly and for this reason."""
        for path, body, headers in WAYS.values():
            began = time.monotonic()
            response = self.client.post(path, json=body, headers=headers)
            assert time.monotonic() - began < 10.0  # the request's own time is 60 s
            assert reason in refusal(response, 503, "redis_unavailable")
            assert response.headers["Retry-After"] == "1"
        return True

    def close(self) -> None:
        self.model.gate.set()
        self._pool.shutdown()


@contextmanager
def troubled(directory: Path, **fields: Any) -> Iterator[Troubled]:
    server = spawn(directory, directory / "s", start_ignoring_limits)
    wait_until_answers(server)
    settings = Settings(redis_url=server.url, request_timeout_seconds=60.0)
    with ExitStack() as stack:
        servers = [server]

        def stop() -> None:
            servers[-1].stop()

        stack.callback(stop)
        model = stack.enter_context(counting_model(settings, **fields))
        trouble = Troubled(servers, settings, model)
        stack.callback(trouble.close)
        yield trouble


@pytest.fixture
def trouble(tmp_path: Path) -> Iterator[Troubled]:
    with troubled(tmp_path) as trouble:
        yield trouble


def served_again(trouble: Troubled, asked: list[Future[TestResponse]]) -> None:
    """See those who waited answered, once each, and everybody served."""
    trouble.model.gate.set()
    assert [answer(each.result(15))["prediction"] for each in asked] == [[[2.0] * 2], [[4.0] * 2]]
    ask: Callable[[], TestResponse] = lambda: trouble.ask(3.0).result(15)  # noqa: E731
    wait_until(lambda: ask().status_code == 200, 10, "it serves again")
    for path, body, headers in WAYS.values():
        assert trouble.client.post(path, json=body, headers=headers).status_code in {200, 202}
    assert trouble.model.computed.count(1.0) == trouble.model.computed.count(2.0) == 1


def test_redis_at_its_memory_limit_refuses_and_answers_those_who_wait(trouble: Troubled) -> None:
    asked = trouble.two_waiting()

    trouble.redis.config_set("maxmemory", "1")

    assert trouble.refuses("command not allowed when used memory > 'maxmemory'")
    trouble.model.gate.set()
    assert [answer(each.result(15))["prediction"] for each in asked] == [[[2.0] * 2], [[4.0] * 2]]
    trouble.redis.config_set("maxmemory", "0")
    served_again(trouble, asked)


def test_a_dead_instances_work_is_put_back_at_the_memory_limit(trouble: Troubled) -> None:
    asked = trouble.two_waiting()
    trouble.redis.config_set("maxmemory", "1")
    wire = open_wire(trouble.redis)

    back = recover(wire, trouble.model.keys, "counting", crashed=True, result_ttl_seconds=60.0)

    wire.close()
    assert back == (1, 0)
    trouble.model.gate.set()
    assert [answer(each.result(15))["prediction"] for each in asked] == [[[2.0] * 2], [[4.0] * 2]]
    trouble.redis.config_set("maxmemory", "0")


def test_what_redis_lost_is_pushed_until_there_is_memory_for_it(trouble: Troubled) -> None:
    asked = trouble.two_waiting()
    before = failed_scripts(trouble)

    trouble.redis.config_set("maxmemory", "1")
    trouble.redis.flushall()
    for kind in ("normal", "pubsub"):
        trouble.redis.client_kill_filter(_type=kind, skipme=True)

    wait_until(lambda: failed_scripts(trouble) > before + 3, 5, "pushes are refused")
    trouble.model.gate.set()
    trouble.redis.config_set("maxmemory", "0")
    assert [answer(each.result(15))["prediction"] for each in asked] == [[[2.0] * 2], [[4.0] * 2]]


def failed_scripts(trouble: Troubled) -> int:
    return int(trouble.redis.info("commandstats")["cmdstat_evalsha"]["failed_calls"])


def test_a_read_only_replica_refuses_until_it_is_the_master_again(trouble: Troubled) -> None:
    asked = trouble.two_waiting()

    trouble.redis.execute_command("REPLICAOF", "127.0.0.1", "1")

    assert trouble.refuses("You can't write against a read only replica")
    trouble.redis.execute_command("REPLICAOF", "NO", "ONE")
    served_again(trouble, asked)


def test_a_full_disk_refuses_until_there_is_room(trouble: Troubled, tmp_path: Path) -> None:
    asked = trouble.two_waiting()

    with full_disk(trouble, tmp_path) as accepted:
        assert trouble.refuses(DISK_FULL)

    served_again(trouble, asked)
    assert answer(accepted.result(15))["prediction"] == [[8.0, 8.0]]


def test_the_reason_stays_when_no_worker_can_be_seen_any_more(
    trouble: Troubled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A supervisor cannot renew its sign of life on a full disk."""
    monkeypatch.setattr(catalog, "RESTART_GRACE_SECONDS", 0.1)
    (sign,) = trouble.redis.scan_iter("*supervisors:*")
    answer(trouble.ask(0.0).result(15))
    trouble.redis.pexpire(sign, 500)

    with full_disk(trouble, tmp_path):
        wait_until(lambda: not trouble.redis.exists(sign), 10, "nobody is seen")
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > 1.0, 10, "what is known got old")
        assert trouble.refuses(DISK_FULL)


def test_a_command_says_why_redis_refuses(
    trouble: Troubled, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("REDIS_URL", trouble.server.url)

    with full_disk(trouble, tmp_path):
        assert main(["models", "list"]) == EXIT_BAD_USAGE

    said = capsys.readouterr().err
    assert "refuses: " in said and DISK_FULL in said
    assert "no Redis" not in said


@contextmanager
def full_disk(trouble: Troubled, directory: Path) -> Iterator[Future[TestResponse]]:
    """Leave the server no room for its file; yield the request that finds it so."""
    pid, unlimited = trouble.server.process.pid, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    size = max(file.stat().st_size for file in directory.rglob("*.aof"))
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        accepted = trouble.ask(4.0)
        wait_until(lambda: aof_fails(trouble), 10, "it cannot write its file")
        yield accepted
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)
        wait_until(lambda: not aof_fails(trouble), 10, "it writes its file again")


def aof_fails(trouble: Troubled) -> bool:
    status = trouble.redis.info("persistence")["aof_last_write_status"]
    return bool(status == "err")


def test_a_redis_that_reads_its_file_refuses_and_then_answers_those_who_wait(
    trouble: Troubled, tmp_path: Path
) -> None:
    asked = trouble.two_waiting()
    for _ in range(25):
        trouble.redis.eval(WRITE_A_THOUSAND, 0)
    trouble.server.process.kill()
    trouble.server.process.wait()
    trouble.server.socket.unlink()

    slowly = lambda command, **options: start_ignoring_limits(  # noqa: E731
        [*command, "--key-load-delay", "50"], **options
    )
    trouble.servers.append(spawn(tmp_path, tmp_path / "s", slowly))
    wait_until(lambda: reason(trouble) == "Redis is loading its data", 5, "it says so")
    wait_until_answers(trouble.server)
    served_again(trouble, asked)


def reason(trouble: Troubled) -> str:
    response = trouble.client.post(PREDICT, json=tensor(5.0), headers={"Prefer": "respond-async"})
    return "" if response.status_code == 202 else refusal(response, 503, "redis_unavailable")


def test_a_deadline_holds_while_redis_hangs(trouble: Troubled) -> None:
    """Behind an answer: a request that is to look at the registry first waits for that as well."""

    def holds() -> bool:
        answer(trouble.ask(0.0).result(10))
        pid = trouble.server.process.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            response = trouble.client.post(
                PREDICT, json=tensor(1.0), headers={"X-Request-Timeout": "0.3"}
            )
            seconds = time.monotonic() - began
        finally:
            os.kill(pid, signal.SIGCONT)
        wait_until(lambda: trouble.ask(2.0).result(15).status_code == 200, 10, "it serves again")
        refusal(response, 503, "request_expired")
        return seconds < 4.5  # a command to Redis may take 5

    assert any(holds() for _ in range(3))


def test_an_answer_that_redis_hangs_up_on_is_an_error_and_the_next_one_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(_: CountingModel, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": np.resize(inputs["x"], (1, 2**20 if inputs["x"][0, 0] == 1.0 else 2))}

    monkeypatch.setattr(CountingModel, "forward", forward)
    any_columns = TensorSpec(name="y", datatype="FP32", dims=(-1,))
    with troubled(tmp_path, outputs=(any_columns,)) as trouble:
        trouble.redis.config_set("proto-max-bulk-len", 2**20)

        error = refusal(trouble.ask(1.0).result(15), 500, "model_failed")

        assert error == "the answer was computed, but Redis did not take it"
        assert answer(trouble.ask(2.0).result(15))["prediction"] == [[2.0, 2.0]]
