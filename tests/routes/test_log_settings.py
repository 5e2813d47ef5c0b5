"""/v2/logging: what is set over the protocol holds for every process, and for as long as Redis."""

from __future__ import annotations

import logging
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from answers import answer, refusal
from ferry_processes import running_worker
from flask.testing import FlaskClient
from registered import register, spec
from scripted_models import Slow, add_model
from triton_http import refused, triton_client
from waiting import wait_until
from worker_processes import Served, seen

from api.app import create_app
from shared.registry.log_settings import LogLevel, level_of, settings_of
from shared.registry.registry import Registry
from shared.registry.snapshot import InstanceRecord
from shared.settings import Settings
from shared.wire.client import connect
from worker.logs import follow_level
from worker.meter import Meter

LOGGING = "/v2/logging"
DEFAULT = {
    "log_file": "",
    "log_info": True,
    "log_warning": True,
    "log_error": True,
    "log_verbose_level": 0,
    "log_format": "default",
}
SILENT = {"log_info": 0, "log_warning": 0, "log_error": 0, "log_verbose_level": 0}
BATCH = "answered a batch"


@pytest.fixture(autouse=True)
def _level() -> Iterator[None]:
    """Put the test process's own level back: the API that runs in it follows what is set."""
    before = logging.getLogger().level
    yield
    logging.getLogger().setLevel(before)
    logging.getLogger("gunicorn.error").setLevel(logging.NOTSET)


@pytest.fixture
def client(settings: Settings) -> FlaskClient:
    return create_app(settings).test_client()


def level_now() -> int:
    return logging.getLogger().level


# What can be read and set.


@pytest.mark.parametrize(
    ("level", "different"),
    [
        ("DEBUG", {"log_verbose_level": 1}),
        ("INFO", {}),
        ("WARNING", {"log_info": False}),
        ("ERROR", {"log_info": False, "log_warning": False}),
    ],
)
def test_nothing_set_shows_what_ferry_log_level_says(
    settings: Settings, level: str, different: dict[str, Any]
) -> None:
    client = create_app(replace(settings, log_level=level)).test_client()

    assert answer(client.get(LOGGING)) == DEFAULT | different


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({}, logging.INFO),
        ({"log_verbose_level": 3}, logging.DEBUG),
        ({**SILENT, "log_verbose_level": 1}, logging.DEBUG),
        ({"log_info": 0}, logging.WARNING),
        ({"log_warning": 0}, logging.INFO),
        ({"log_info": 0, "log_warning": 0}, logging.ERROR),
        (SILENT, logging.CRITICAL),
    ],
)
def test_settings_stand_for_a_level(changes: dict[str, int], level: int) -> None:
    assert level_of(settings_of(logging.INFO, changes)) == level


@pytest.mark.parametrize("level", ["DEBUG", "INFO", "WARNING", "ERROR"])
def test_the_default_settings_stand_for_the_default_level(level: str) -> None:
    number = logging.getLevelNamesMapping()[level]

    assert level_of(settings_of(number, {})) == number


def test_a_change_leaves_what_it_does_not_name_and_answers_everything(client: FlaskClient) -> None:
    first = answer(client.post(LOGGING, json={"log_info": False}))
    second = answer(client.post(LOGGING, json={"log_verbose_level": 2, "log_error": True}))

    assert first == DEFAULT | {"log_info": False}
    assert second == DEFAULT | {"log_info": False, "log_verbose_level": 2}
    assert answer(client.get(LOGGING)) == second


def test_the_only_log_file_there_is_can_be_set(client: FlaskClient) -> None:
    assert answer(client.post(LOGGING, json={"log_file": ""})) == DEFAULT
    assert answer(client.post(LOGGING, json={})) == DEFAULT


def test_times_are_written_in_the_form_that_is_set(client: FlaskClient) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    record = logging.makeLogRecord({"msg": "hello", "created": 1.25, "msecs": 250.0})
    before = handler.format(record)
    logging.getLogger().addHandler(handler)
    try:
        iso = answer(client.post(LOGGING, json={"log_format": "ISO8601"}))
        assert iso == answer(client.get(LOGGING)) == DEFAULT | {"log_format": "ISO8601"}
        assert handler.format(record) == "1970-01-01T00:00:01.250Z hello"

        assert answer(client.post(LOGGING, json={"log_format": "default"})) == DEFAULT
        assert handler.format(record) == before
    finally:
        logging.getLogger().removeHandler(handler)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"log_file": "/tmp/log"}, "log_file '/tmp/log' is not supported"),
        ({"log_format": "iso8601"}, "log_format must be one of default, ISO8601, not 'iso8601'"),
        ({"log_format": ["default"]}, "log_format must be one of"),
        ({"log_format": None}, "log_format must be one of"),
        ({"log_level": 1}, "'log_level' is not a log setting"),
        ({"log_info": 1}, "log_info must be true or false, not 1"),
        ({"log_error": None}, "log_error must be true or false, not None"),
        ({"log_warning": "true"}, "log_warning must be true or false, not 'true'"),
        ({"log_verbose_level": True}, "log_verbose_level must be a whole number from 0, not True"),
        ({"log_verbose_level": -1}, "log_verbose_level must be a whole number from 0, not -1"),
        ({"log_verbose_level": 1.0}, "log_verbose_level must be a whole number from 0, not 1.0"),
        ({"log_verbose_level": 2**31}, "log_verbose_level must be a whole number"),
        ({"log_file": ["x"]}, "log_file ['x'] is not supported"),
        ([], "must be a JSON object"),
    ],
)
def test_a_wrong_setting_is_named_and_nothing_is_set(
    client: FlaskClient, body: Any, message: str
) -> None:
    also = {"log_info": False} | body if isinstance(body, dict) else body

    assert message in refusal(client.post(LOGGING, json=also))
    assert answer(client.get(LOGGING)) == DEFAULT


def test_without_redis_they_are_neither_read_nor_set(tmp_path: Path) -> None:
    client = create_app(Settings(redis_url=f"unix://{tmp_path}/nobody.sock")).test_client()

    refusal(client.get(LOGGING), 503, "redis_unavailable")
    refusal(client.post(LOGGING, json={"log_info": False}), 503, "redis_unavailable")


# Which processes follow.


def test_the_process_that_is_asked_follows_at_once(client: FlaskClient) -> None:
    client.post(LOGGING, json={"log_verbose_level": 1})
    assert level_now() == logging.getLogger("gunicorn.error").level == logging.DEBUG

    client.post(LOGGING, json={"log_verbose_level": 0, "log_info": False})
    assert level_now() == logging.getLogger("gunicorn.error").level == logging.WARNING


def test_an_api_process_follows_when_it_next_looks_at_the_models(
    settings: Settings, client: FlaskClient
) -> None:
    register(settings, spec("m"))
    other = create_app(settings).test_client()
    client.post(LOGGING, json={"log_info": False, "log_warning": False})
    logging.getLogger().setLevel(logging.INFO)  # both are in this one process

    other.get("/v2/models/m")

    assert level_now() == logging.ERROR
    assert answer(other.get(LOGGING)) == DEFAULT | {"log_info": False, "log_warning": False}


def test_an_api_process_goes_back_to_its_own_level_when_redis_lost_what_was_set(
    settings: Settings, client: FlaskClient
) -> None:
    client.post(LOGGING, json={"log_verbose_level": 1})
    connect(settings.redis_url).delete(f"{settings.key_prefix}:log")

    assert answer(client.get(LOGGING)) == DEFAULT
    assert level_now() == logging.INFO


def test_a_process_in_which_nothing_was_set_leaves_its_loggers_alone(client: FlaskClient) -> None:
    before = level_now()

    client.get("/v2/models/m")

    assert level_now() == before


def test_an_instance_follows_its_meter_once_there_is_a_level_in_it() -> None:
    level, meter = LogLevel("INFO"), Meter()
    logging.getLogger().setLevel(logging.INFO)

    follow_level(level, meter)
    assert level_now() == logging.INFO

    meter.log_level = logging.DEBUG
    meter.reset()  # between one process of the slot and the next
    follow_level(level, meter)
    assert level_now() == logging.DEBUG


# Triton's client, real processes.


@pytest.fixture(scope="module")
def logged(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path]]:
    """Settings under which a real worker logs, and the file it logs to."""
    directory = tmp_path_factory.mktemp("logged")
    add_model(directory / "models", Slow())
    settings = Settings(
        redis_url=redis_url, key_prefix="logged", models=str(directory / "models"),
        heartbeat_seconds=0.3,
    )  # fmt: skip
    with running_worker(settings, log_file=directory / "log"):
        yield settings, directory / "log"


@pytest.fixture
def slow(logged: tuple[Settings, Path]) -> Iterator[Served]:
    """The model, with nothing set when the test begins."""
    settings, _ = logged
    with seen(settings, "slow") as slow:
        slow.redis.delete(f"{settings.key_prefix}:log")
        slow.wait_ready()
        yield slow


def lines(file: Path, text: str) -> list[str]:
    return [line for line in file.read_text().splitlines() if text in line]


def has_iso_times(lines: list[str]) -> bool:
    return any(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ", line) for line in lines)


def kill(slow: Served) -> InstanceRecord:
    """Kill the model's instance and return its successor."""
    (victim,) = slow.wait_ready()
    os.kill(victim.pid, signal.SIGKILL)
    wait_until(
        lambda: [r.id for r in slow.ready()] not in ([], [victim.id]), 30, "another is ready"
    )
    return slow.ready()[0]


def test_tritons_client_makes_every_api_process_and_instance_talk_and_be_silent(
    logged: tuple[Settings, Path], slow: Served, tmp_path: Path
) -> None:
    settings, log = logged

    def batches() -> int:
        """Ask once and return how many batches the instance logged since it started."""
        slow.push(1.0).wait()
        return len(lines(log, BATCH))

    def requests_seen() -> int:
        other.is_model_ready("slow")
        return len(lines(tmp_path / "log", "[DEBUG] GET /v2/models/slow/ready"))

    with triton_client(settings) as triton, triton_client(settings, tmp_path / "log") as other:
        assert triton.get_log_settings() == DEFAULT
        assert (batches(), requests_seen()) == (0, 0)

        assert triton.update_log_settings({"log_verbose_level": 1})["log_verbose_level"] == 1

        wait_until(batches, 10, "the instance logs its batches")
        wait_until(requests_seen, 10, "the other API process logs its requests")
        assert other.get_log_settings() == DEFAULT | {"log_verbose_level": 1}

        triton.update_log_settings({"log_verbose_level": 0})

        wait_until(lambda: batches() == batches(), 10, "the instance is silent again")
        wait_until(lambda: requests_seen() == requests_seen(), 10, "the other process is, too")


def test_tritons_client_is_told_what_it_cannot_set(logged: tuple[Settings, Path]) -> None:
    with triton_client(logged[0]) as triton:
        status, message = refused(triton.update_log_settings, {"log_file": "/tmp/x"})

    assert (status, "log_file" in message) == ("400", True)


def test_a_supervisor_and_the_instances_that_it_starts_follow(
    logged: tuple[Settings, Path], slow: Served
) -> None:
    _, log = logged
    silenced = len(lines(log, "is ready"))
    registry: Registry = slow.registry
    registry.change_log(SILENT)
    # Killed before the supervisor looked, an instance may still be logged: the next one is not.
    wait_until(
        lambda: len(lines(log, kill(slow).id)) == 0, 30, "a new instance that no line is about"
    )

    registry.change_log({"log_verbose_level": 1})
    wait_until(lambda: lines(log, f"{kill(slow).id} is ready"), 30, "the supervisor logs again")
    assert len(lines(log, "is ready")) > silenced

    registry.change_log({"log_format": 1})
    wait_until(lambda: has_iso_times(lines(log, f"{kill(slow).id} is ready")), 30, "it follows")
    successor = kill(slow)
    slow.push(1.0).wait()
    by_it = [line for line in lines(log, BATCH) if f" {successor.pid} worker.inst" in line]
    assert by_it and has_iso_times(by_it)


def test_what_was_set_before_a_worker_started_holds_while_its_models_load(
    settings: Settings, tmp_path: Path
) -> None:
    add_model(tmp_path / "models", torch.nn.Identity()).write_bytes(b"no model at all")
    settings = replace(settings, models=str(tmp_path / "models"))
    with seen(settings, "identity") as identity:
        identity.registry.change_log(SILENT)
        with running_worker(settings, wait_ready=False, log_file=tmp_path / "log"):
            wait_until(lambda: identity.registry.snapshot().failures, 30, "it failed to load")

    assert lines(tmp_path / "log", "failed to load") == []
