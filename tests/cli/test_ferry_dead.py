"""`ferry dead`: what was given up is listed, shown, pushed anew with an answer to read, dropped."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
from fake_backend import answered
from ferry_processes import environment
from redis import Redis
from registered import register, spec

from api.app import create_app
from ferry.cli import main
from shared.messages import AnswerForm, InferRequest, InferResult, Tensor
from shared.model_spec import TensorSpec
from shared.request_queue.async_records import AsyncRecords
from shared.request_queue.async_requests import AsyncRequests, new_id
from shared.request_queue.keys import QueueKeys
from shared.request_queue.limits import Limits
from shared.request_queue.recovery import recover
from shared.request_queue.worker_end import WorkQueue
from shared.settings import Settings
from shared.wire.client import connect
from shared.wire.wire import Wire, open_wire

SPEC = spec("m", TensorSpec(name="x", datatype="FP32", dims=(3,)))
VALUES = np.array([[1.5, float("nan"), -2.0]], np.float32)


@pytest.fixture(autouse=True)
def where(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in environment(settings).items():
        monkeypatch.setenv(variable, value)
    register(settings, SPEC)


@pytest.fixture
def redis(settings: Settings) -> Iterator[Redis]:
    client = connect(settings.redis_url)
    yield client
    client.close()


@pytest.fixture
def wire(redis: Redis) -> Iterator[Wire]:
    wire = open_wire(redis)
    yield wire
    wire.close()


@pytest.fixture
def keys(settings: Settings) -> QueueKeys:
    return QueueKeys(settings.key_prefix, SPEC.key)


@pytest.fixture
def dead(redis: Redis, wire: Wire, keys: QueueKeys) -> str:
    return give_up(redis, wire, keys)


def give_up(redis: Redis, wire: Wire, keys: QueueKeys) -> str:
    """Have three instances die under a request; return its id."""
    inputs = (
        Tensor.of("x", VALUES),
        Tensor.of("words", np.array([b"a\x1bb", b"\xff"], dtype=object)),
    )
    request = InferRequest(new_id(), 1, inputs, ("out",), 30.0, b"\xfe" * 8)
    AsyncRequests(redis, keys, Limits()).submit(request)
    for _ in range(3):
        assert WorkQueue(wire, keys, "i-0.1", result_ttl_seconds=5.0).claim(1, 0.0)
        recover(wire, keys, "i-0.1", crashed=True, result_ttl_seconds=5.0)
    return request.id


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict]:
    assert main(["dead", *arguments, "--json"]) == 0
    found: list[dict] = json.loads(capsys.readouterr().out)
    return found


def test_the_list_says_who_died_under_what_newest_first(
    redis: Redis, wire: Wire, keys: QueueKeys, dead: str, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = give_up(redis, wire, keys)

    first, second = printed(capsys, "list")

    assert [first["id"], second["id"]] == [newer, dead]
    assert second["died_at"] >= second.pop("enqueued_at") > "2026"
    assert second.pop("died_at").endswith("+00:00")
    assert second == {
        "id": dead, "model": "m", "version": "1", "level": 1, "rows": 1, "attempts": 3,
        "instance": "i-0.1",
    }  # fmt: skip


def test_a_table_has_a_line_for_each(dead: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dead", "list"]) == 0

    _, line = capsys.readouterr().out.splitlines()
    assert line.split()[:4] == [dead, "m/1", "1", "3"]
    assert line.split()[-1] == "i-0.1"


def test_nothing_dead_is_a_sentence_and_an_empty_list(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["dead", "list"]) == 0
    assert capsys.readouterr().out == "no request was given up\n"
    assert printed(capsys, "list") == []


def test_show_decodes_the_inputs(dead: str, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = printed(capsys, "show", dead)

    assert found["outputs"] == ["out"]
    assert found["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": [1, 3], "first_values": [1.5, "nan", -2.0]},
        {"name": "words", "datatype": "BYTES", "shape": [2], "first_values": ["a\x1bb", "\ufffd"]},
    ]


def test_show_prints_a_line_for_each_input(dead: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dead", "show", dead]) == 0

    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1][0] == dead
    assert lines[-2] == ["x", "FP32", "[1,", "3]", "1.5", "nan", "-2.0"]
    assert lines[-1] == ["words", "BYTES", "[2]", "a?b", "\ufffd"]


def test_a_replayed_request_is_run_again_and_its_answer_can_be_read(
    settings: Settings, wire: Wire, keys: QueueKeys, dead: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (replayed,) = printed(capsys, "replay", dead)
    assert replayed["id"] == dead != replayed["new_id"]
    http = create_app(settings).test_client()
    assert http.get(replayed["location"]).status_code == 202

    work = WorkQueue(wire, keys, "i-0.2", result_ttl_seconds=5.0)
    (claimed,) = work.claim(1, 0.0)
    request = claimed.request()
    output = Tensor.of("out", request.inputs[0].array() + 1)
    work.publish([claimed], answered([claimed], [InferResult((output,)).encode()]))

    answer = http.get(replayed["location"]).get_json()
    assert claimed.attempts == 1
    assert request.outputs == ("out",)
    assert answer["model_name"] == "m"
    assert answer["outputs"][0]["data"] == [2.5, None, -1.0]
    assert [found["id"] for found in printed(capsys, "list")] == [dead]


def test_a_request_is_replayed_to_a_version_that_was_replaced_and_stands_by(
    redis: Redis, wire: Wire, keys: QueueKeys, dead: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As those that name it; a queue that takes none at all says so."""
    redis.set(keys.elsewhere, "unnamed")
    printed(capsys, "replay", dead)
    assert len(WorkQueue(wire, keys, "i-0.2", result_ttl_seconds=5.0).claim(1, 0.0)) == 1

    redis.set(keys.elsewhere, "all")
    assert main(["dead", "replay", dead]) == 1
    assert "version" in capsys.readouterr().err


def test_the_answer_is_written_as_the_first_route_would_have(
    settings: Settings,
    redis: Redis,
    wire: Wire,
    keys: QueueKeys,
    dead: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    records = AsyncRecords(redis, settings.key_prefix, 60.0)
    records.save(dead, SPEC, AnswerForm("tensor"), 60.0, durable=False)

    (replayed,) = printed(capsys, "replay", dead)
    work = WorkQueue(wire, keys, "i", result_ttl_seconds=5.0)
    batch = work.claim(1, 0.0)
    work.publish(batch, answered(batch, [InferResult((Tensor.of("out", VALUES),)).encode()]))

    answer = create_app(settings).test_client().get(replayed["location"]).get_json()
    assert answer["prediction"] == [[1.5, None, -2.0]]


def test_a_full_queue_refuses_a_replay(
    settings: Settings,
    redis: Redis,
    dead: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FERRY_MAX_QUEUE_SIZE", "1")

    assert main(["dead", "replay", dead, dead, "--json"]) == 1

    captured = capsys.readouterr()
    assert len(json.loads(captured.out)) == 1
    assert captured.err == "ferry: Exceeds maximum queue size\n"


def test_what_is_dropped_is_gone_with_its_inputs(
    redis: Redis, wire: Wire, keys: QueueKeys, dead: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = give_up(redis, wire, keys)

    assert printed(capsys, "drop", dead) == [{"id": dead}]

    assert [found["id"] for found in printed(capsys, "list")] == [kept]
    assert not redis.exists(keys.dead_body + dead)
    assert redis.exists(keys.dead_body + kept)


@pytest.mark.parametrize("action", ["show", "replay", "drop"])
def test_an_unknown_id_ends_with_1_and_is_named(
    action: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dead", action, "ab"]) == 1
    assert capsys.readouterr().err == "ferry: no request 'ab' was given up\n"


def test_inputs_that_are_no_longer_kept_end_with_1(
    redis: Redis, keys: QueueKeys, dead: str, capsys: pytest.CaptureFixture[str]
) -> None:
    redis.delete(keys.dead_body + dead)

    assert main(["dead", "replay", dead]) == 1
    assert "its inputs are no longer kept" in capsys.readouterr().err


def test_a_model_that_is_no_longer_served_is_not_replayed(
    settings: Settings, dead: str, capsys: pytest.CaptureFixture[str]
) -> None:
    register(settings).remove_model(SPEC.key)

    assert main(["dead", "replay", dead]) == 1
    assert capsys.readouterr().err == "ferry: no worker serves version 1 of 'm' any more\n"


def test_what_is_replayed_lives_as_long_as_its_batch_may_run(
    settings: Settings,
    redis: Redis,
    keys: QueueKeys,
    dead: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FERRY_MAX_BATCH_SECONDS", "50000")

    (replayed,) = printed(capsys, "replay", dead)

    request_id = replayed["location"].rpartition("/")[2]
    assert redis.pttl(keys.body + request_id) > 50_000_000
    assert redis.pttl(f"{settings.key_prefix}:request:{request_id}") > 50_000_000
