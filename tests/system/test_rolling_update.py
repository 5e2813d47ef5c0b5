"""Machines, and releases of Ferry, one after another: nobody is failed, or asked of who cannot."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest
from ferry_processes import ROOT, free_port, running_gunicorn, running_worker
from http_load import Answer, Client, load
from versioned_models import add_model, write_model
from waiting import wait_until

from shared.registry.registry import Registry
from shared.settings import Settings
from shared.ticket import TICKET_VERSION
from shared.wire.client import connect


class Machines:
    """Two workers with a repository each, and an API."""

    def __init__(self, settings: Settings, repositories: list[Path]) -> None:
        self.port = settings.port
        self.repositories = repositories
        self._registry = Registry(connect(settings.redis_url), settings.key_prefix)

    def served_by(self, answers: list[Answer], version: str) -> set[str]:
        """Return the supervisors that a version was answered by."""
        found = [each.instance for each in list(answers) if each.version == version]
        return {instance.rpartition("-")[0] for instance in found}

    def supervisors(self, version: str) -> set[str]:
        """Return those that have a version ready."""
        return {
            record.supervisor
            for record in self._registry.instances()[0]
            if record.version == version and record.state == "ready"
        }

    def copy(self, machine: int, version: int, answers: list[Answer]) -> None:
        """Copy a version to a machine as scp does: under its name, and in pieces."""
        draft = self.repositories[machine].parent / "draft.onnx"
        write_model(draft, float(version))
        content = draft.read_bytes()
        directory = self.repositories[machine] / "m" / str(version)
        directory.mkdir()
        with (directory / "model.onnx").open("wb") as file:
            file.write(content[: len(content) // 2])
            file.flush()
            self.goes_on(answers)
            file.write(content[len(content) // 2 :])

    def goes_on(self, answers: list[Answer]) -> None:
        """Wait until more were answered."""
        enough = len(answers) + 200
        wait_until(lambda: len(answers) > enough, 60, "more answers")


@pytest.fixture
def machines(settings: Settings, tmp_path: Path) -> Iterator[Machines]:
    repositories = [tmp_path / name / "models" for name in ("a", "b")]
    settings = replace(
        settings, model_control_mode="poll", poll_seconds=0.3, standby_seconds=0.0, port=free_port()
    )
    for repository in repositories:
        add_model(repository, "m", 1)
    with ExitStack() as running:
        for repository in repositories:
            each = replace(settings, models=str(repository))
            running.enter_context(running_worker(each, wait_ready=False))
        running.enter_context(running_gunicorn(settings))
        found = Machines(settings, repositories)
        wait_until(lambda: len(found.supervisors("1")) == 2, 60, "both serve version 1")
        yield found


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_version_copied_to_one_machine_after_the_other_fails_nobody(
    machines: Machines, order: tuple[int, int]
) -> None:
    with load(machines.port) as answers:
        machines.copy(order[0], 2, answers)
        wait_until(lambda: machines.served_by(answers, "2"), 60, "it answers")
        machines.goes_on(answers)
        first, by_one = machines.supervisors("2"), machines.served_by(answers, "2")
        machines.copy(order[1], 2, answers)
        wait_until(lambda: len(machines.served_by(answers, "2")) == 2, 60, "both answer")

    assert by_one == first
    assert len(first) == 1


@pytest.fixture(scope="module")
def other_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this code whose messages have another format."""
    root = tmp_path_factory.mktemp("release")
    for package in ("api", "ferry", "jobs", "shared", "worker"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, root / package, ignore=ignored)
    shutil.copy(ROOT / "gunicorn.conf.py", root)
    ticket = root / "shared" / "ticket.py"
    line = f"TICKET_VERSION = {TICKET_VERSION}\n"
    assert line in ticket.read_text()
    ticket.write_text(ticket.read_text().replace(line, f"TICKET_VERSION = {TICKET_VERSION + 1}\n"))
    return root


def test_two_releases_side_by_side_answer_their_own_requests(
    settings: Settings, tmp_path: Path, other_release: Path
) -> None:
    add_model(tmp_path / "models", "m", 1)
    ours = replace(settings, models=str(tmp_path / "models"), port=free_port())
    theirs = replace(ours, port=free_port())
    registry = Registry(connect(settings.redis_url), settings.key_prefix)
    with (
        running_worker(ours),
        running_gunicorn(ours),
        running_gunicorn(theirs, root=other_release),
        closing(Client(ours.port)) as our_client,
        closing(Client(theirs.port)) as their_client,
    ):
        # Nobody there can read what they ask: it is left alone, also by who can do everything else.
        assert code(their_client.ask(X_Request_Timeout="0.5")) == (503, "request_expired")
        stored = their_client.ask(Prefer="respond-async", X_Request_Timeout="60")
        assert stored.status == 202
        with ThreadPoolExecutor(1) as pool, load(ours.port):
            waiting = pool.submit(their_client.ask, X_Request_Timeout="60")
            with running_worker(theirs, wait_ready=False, root=other_release):
                assert waiting.result(timeout=90).version == "1"
                wait_until(lambda: ready(registry) == 2, 60, "both workers serve it")
                with load(ours.port, theirs.port) as answers:
                    wait_until(lambda: len(answers) > 400, 60, "answers of both")
                asked_at_ours = our_client.ask("GET", stored.location)
                asked_at_theirs = their_client.ask("GET", stored.location)

    instances = [{each.instance for each in answers if each.port == port}
                 for port in (ours.port, theirs.port)]  # fmt: skip
    assert [len(each) for each in instances] == [1, 1]
    assert instances[0] != instances[1]
    assert asked_at_theirs.version == "1"
    assert code(asked_at_ours) == (503, "model_not_ready")
    assert "another release of Ferry" in asked_at_ours.said["error"]


def code(answer: Answer) -> tuple[int, str]:
    """Return the status and the code of a refusal."""
    return answer.status, answer.said["code"]


def ready(registry: Registry) -> int:
    return sum(record.state == "ready" for record in registry.instances()[0])
