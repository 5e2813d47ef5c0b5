"""`ferry queue`: depth, bytes, age, attempts and who holds what, as a table and as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from ferry_processes import environment
from redis import Redis
from registered import register, spec
from waiting import wait_until

from ferry.cli import main
from shared.courier.pending import PushArguments
from shared.model_spec import TensorSpec
from shared.request_queue.commands import cancel_command, push_command
from shared.request_queue.keys import QueueKeys
from shared.request_queue.limits import Limits
from shared.request_queue.recovery import recover
from shared.request_queue.worker_end import WorkQueue
from shared.settings import Settings
from shared.wire.client import connect
from shared.wire.wire import Wire, open_wire

SPEC = spec("m", TensorSpec(name="x", datatype="FP32", dims=(2,))).model_copy(
    update={"priority_levels": 2}
)


@pytest.fixture(autouse=True)
def where(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in environment(settings).items():
        monkeypatch.setenv(variable, value)


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
    return QueueKeys(settings.key_prefix, SPEC.key, SPEC.levels)


def push(wire: Wire, keys: QueueKeys, *sizes: int, level: int = 1) -> list[str]:
    """Push one request for each size of body; return their ids."""
    ids = [f"{level:08x}{size:024x}" for size in sizes]
    wire.send(
        push_command(
            keys,
            Limits(),
            [
                PushArguments(request_id, 1, level, bytes(8), 100.0, 100_000, bytes(size))
                for request_id, size in zip(ids, sizes, strict=True)
            ],
        )
    )
    assert wire.reply() == [b"queued"] * len(sizes)
    return ids


def claim(wire: Wire, keys: QueueKeys, instance: str, rows: int) -> None:
    assert WorkQueue(wire, keys, instance, result_ttl_seconds=5.0).claim(rows, 0.0)


def as_json(capsys: pytest.CaptureFixture[str]) -> list[dict]:
    capsys.readouterr()
    assert main(["queue", "--json"]) == 0
    found: list[dict] = json.loads(capsys.readouterr().out)
    return found


def test_json_tells_of_each_level_what_waits_and_who_holds_what(
    settings: Settings, wire: Wire, keys: QueueKeys, capsys: pytest.CaptureFixture[str]
) -> None:
    register(settings, SPEC)
    first, *_ = push(wire, keys, 10, 20, 30, 40, 50)
    push(wire, keys, 7, level=2)
    claim(wire, keys, "i", 1)
    recover(wire, keys, "i", crashed=True, result_ttl_seconds=5.0)
    claim(wire, keys, "j", 1)
    claim(wire, keys, "k", 2)
    wire.send(cancel_command(keys, "cancelled", [first[:8] + f"{50:024x}"]))
    wire.reply()

    (version,) = as_json(capsys)

    assert (version["model"], version["version"]) == ("m", "1")
    urgent, other = version["levels"]
    ages = [level.pop("oldest_seconds") for level in version["levels"]]
    assert all(0 < age < 30 for age in ages)
    assert urgent == {
        "level": 1, "depth": 1, "bytes": 40, "highest_attempts": 1, "in_flight": {"j": 1, "k": 2},
    }  # fmt: skip
    assert other == {
        "level": 2, "depth": 1, "bytes": 7, "highest_attempts": 0, "in_flight": {},
    }  # fmt: skip
    assert version["cancelled_count"] == 1
    assert version["expired_count"] == version["dead_count"] == 0


def test_the_oldest_is_found_wherever_it_stands(
    wire: Wire, keys: QueueKeys, capsys: pytest.CaptureFixture[str]
) -> None:
    push(wire, keys, 1)
    wait_until(lambda: as_json(capsys)[0]["levels"][0]["oldest_seconds"] > 0.2, 5, "it has aged")
    push(wire, keys, 2)
    claim(wire, keys, "old", 1)
    claim(wire, keys, "new", 1)
    for instance in ("old", "new"):  # the younger one comes to stand in front
        recover(wire, keys, instance, crashed=True, result_ttl_seconds=5.0)

    (level,) = as_json(capsys)[0]["levels"]

    assert level["depth"] == 2
    assert level["oldest_seconds"] > 0.2


def test_a_table_has_a_line_for_each_level(
    settings: Settings, wire: Wire, keys: QueueKeys, capsys: pytest.CaptureFixture[str]
) -> None:
    register(settings, SPEC)
    push(wire, keys, 10, 20)
    claim(wire, keys, "i", 1)

    assert main(["queue"]) == 0

    heading, first, second = (line.rstrip() for line in capsys.readouterr().out.splitlines())
    assert heading.split("  ")[0] == "model"
    *known, age, attempts = first.split()[:6]
    assert (known, attempts) == (["m/1", "1", "1", "20"], "0")
    assert re.fullmatch(r"\d+\.\d", age)
    assert first.split()[6:] == [*"0000", "1", "in", "i"]
    assert second.split() == ["m/1", "2", "0", "0", "0.0", "0"]


def test_what_waits_for_a_version_or_level_that_is_not_served_is_shown(
    wire: Wire, keys: QueueKeys, capsys: pytest.CaptureFixture[str]
) -> None:
    push(wire, keys, 9, level=2)

    (version,) = as_json(capsys)

    assert [(level["level"], level["depth"]) for level in version["levels"]] == [(2, 1)]


def test_without_models_there_is_a_sentence_and_an_empty_list(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["queue"]) == 0
    assert capsys.readouterr().out == "no queues: no model is served on this Redis\n"
    assert as_json(capsys) == []
