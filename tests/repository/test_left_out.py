"""What lies in a repository and is no model is named once, with the reason, and harms no model."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from versioned_models import add_model, write_model

from shared.errors import BadModel
from shared.registry.desired_state import Desired
from shared.settings import Settings
from worker.repository.check import check_repository
from worker.repository.models import model_names
from worker.supervisor.background_planner import BackgroundPlanner
from worker.supervisor.planner import Planner

NO_MODEL = "no config.pbtxt, and no version directory with a model file in it"
SET_ASIDE = "its name says that it holds no model"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One model, and much that is none."""
    repository = tmp_path / "models"
    add_model(repository, "m", 1)
    for name in ("empty", "my model", "-dash", "größe", ".git", "__pycache__", "lost+found"):
        (repository / name).mkdir()
    (repository / "README.md").write_text("about them")
    (repository / "link.md").symlink_to("README.md")
    (repository / "nowhere").symlink_to(tmp_path / "gone")
    return repository


@pytest.fixture
def planner(repository: Path) -> Planner:
    return Planner(Settings(models=str(repository), model_control_mode="poll"))


def said(caplog: pytest.LogCaptureFixture, repository: Path) -> dict[str, tuple[str, str]]:
    """Return level and reason of each directory that the log says is left out, and clear it."""
    found = {}
    for record in caplog.records:
        path, _, reason = record.getMessage().partition(" is left out: ")
        assert reason, record.getMessage()
        name = Path(path).relative_to(repository).as_posix()
        assert name not in found, "said twice"
        found[name] = (record.levelname, reason)
    caplog.clear()
    return found


def test_each_directory_that_is_left_out_is_named_once(
    repository: Path, planner: Planner, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    for _ in range(3):
        assert planner.names() == ["m"]

    found = said(caplog, repository)
    names = {name: reason for name, (level, reason) in found.items() if level == "WARNING"}
    assert names.pop("empty") == NO_MODEL
    assert names.pop("nowhere") == "No such file or directory"
    assert sorted(names) == ["-dash", "größe", "my model"]
    assert names["my model"].startswith("the name 'my model' must be letters, digits, ")
    others = {name: reason for name, (level, reason) in found.items() if level == "INFO"}
    assert others == dict.fromkeys([".git", "__pycache__", "lost+found"], SET_ASIDE)


def test_what_is_left_out_anew_is_named_anew(
    repository: Path, planner: Planner, caplog: pytest.LogCaptureFixture
) -> None:
    planner.names()
    caplog.clear()
    (repository / "empty").rmdir()
    planner.names()
    (repository / "empty").mkdir()
    (repository / "later").mkdir()

    planner.names()

    assert said(caplog, repository) == {name: ("WARNING", NO_MODEL) for name in ("empty", "later")}


def test_directories_beside_the_versions_that_look_like_one_are_named_once(
    repository: Path, planner: Planner, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("02", "v2"):
        (repository / "m" / name).mkdir()
        write_model(repository / "m" / name / "model.onnx", 2.0)
    for name in ("warmup", ".3.draft", "__pycache__"):
        (repository / "m" / name).mkdir()

    for _ in range(2):
        assert list(planner.plan("m", Desired()).versions) == ["1"]

    reason = "no version, those are numbers from 1 without leading zeros"
    assert said(caplog, repository) == {name: ("WARNING", reason) for name in ("m/02", "m/v2")}
    assert check_repository(repository).notes == [
        f"{repository}/m/{name}: {reason}" for name in ("02", "v2")
    ]


def test_the_check_tells_problems_from_what_is_set_aside(repository: Path) -> None:
    problems = check_repository(repository).problems

    assert f"{repository}/empty: {NO_MODEL}" in problems
    assert f"{repository}/nowhere: No such file or directory" in problems
    assert len(problems) == len(["empty", "nowhere", "-dash", "größe", "my model"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every directory")
def test_a_directory_that_may_not_be_read_harms_no_other(
    repository: Path, planner: Planner, caplog: pytest.LogCaptureFixture
) -> None:
    add_model(repository, "secret", 1).chmod(0)

    assert planner.names() == ["m"]
    assert said(caplog, repository)["secret"] == ("WARNING", "Permission denied")

    (repository / "secret").chmod(0o700)


def test_a_repository_that_is_away_is_said_once_until_it_is_back(
    repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    planner = BackgroundPlanner(Settings(models=str(repository), model_control_mode="poll"))
    away = repository.rename(repository.parent / "away")

    def look() -> list[str]:
        caplog.clear()
        planner.poll({}, is_due=True)
        planner._looking and planner._looking.result()
        planner.poll({}, is_due=False)
        return [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]

    message = f"the repository cannot be read, trying again: {repository}: no such model repository"
    assert [look() for _ in range(3)] == [[message], [], []]
    away.rename(repository)
    assert look() == []
    repository.rename(away)
    assert look() == [message]
    with pytest.raises(BadModel):
        planner.planner.names()


def test_a_repository_that_holds_no_model_is_mentioned_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    planner = BackgroundPlanner(Settings(models=str(tmp_path)))

    for _ in range(3):
        planner.follow({}, ())

    assert [record.getMessage() for record in caplog.records] == [
        "the repository holds no model: nothing is served"
    ]


def test_a_repository_that_may_not_be_read_is_named_with_who_may_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)

    with pytest.raises(BadModel, match=f"cannot be read by user {os.geteuid()}: Permission denied"):
        model_names(tmp_path)
