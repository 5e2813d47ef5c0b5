"""What goes wrong around models: the repository, Redis and operators get in each other's way."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from secrets import token_hex

import numpy as np
import pytest
from ferry_processes import running_worker
from redis import Redis
from versioned_models import add_broken, add_model, add_version, remove_version, write_model
from waiting import wait_until

from api.app import create_app
from api.infer.question import Question
from shared.errors import LoadFailed
from shared.messages import InferResult, Tensor
from shared.operations.model_control import ModelControl
from shared.operations.shadow_comparison import compared
from shared.registry.desired_store import DesiredStore
from shared.registry.registry import Registry
from shared.registry.repository_index import repository_index
from shared.registry.snapshot import Snapshot
from shared.settings import Settings
from shared.wire.client import connect
from worker.supervisor.planner import Planner

X = Tensor.of("x", np.array([[1, 10]], np.float32))


class Seen:
    """A worker over `repository` from outside, asked about one model."""

    def __init__(self, settings: Settings, redis: Redis, model: str) -> None:
        self.repository = Path(settings.models)
        self.model = model
        self.redis = redis
        self.prefix = settings.key_prefix
        self.store = DesiredStore(redis, settings.key_prefix)
        self.control = ModelControl(redis, settings.key_prefix)
        services = create_app(settings).extensions["ferry"]
        self.queues, self.catalog = services.queues, services.catalog
        self.registry = Registry(redis, settings.key_prefix)

    def answer(self) -> float:
        """Return the factor by which the model multiplies."""
        self.catalog.refresh()
        return self.catalog.by_current(self._ask)  # as the API does: versions retire meanwhile

    def _ask(self) -> float:
        answered = self.queues.ask(Question(self.catalog.serving(self.model), (X,)))
        factor: float = answered.result.outputs[0].array()[0, 0]
        return factor

    def snapshot(self) -> Snapshot:
        return self.registry.snapshot()


@contextmanager
def working(
    settings: Settings, repository: Path, mode: str = "explicit", load_models: str = "*"
) -> Iterator[Seen]:
    """Run a worker of a test's own over `repository`; ask about `m`."""
    settings = replace(
        settings, models=str(repository), model_control_mode=mode, poll_seconds=0.2,
        load_models=load_models if mode == "explicit" else "",
    )  # fmt: skip
    with connect(settings.redis_url) as redis, running_worker(settings):
        yield Seen(settings, redis, "m")


@pytest.fixture(scope="module")
def explicit(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A worker in mode explicit for all tests that keep to a model of their own."""
    repository = tmp_path_factory.mktemp("models")
    add_model(repository, "there", 1)
    settings = Settings(
        redis_url=redis_url, key_prefix="mishaps", models=str(repository),
        model_control_mode="explicit", load_models="*",
    )  # fmt: skip
    with running_worker(settings):
        yield settings


@pytest.fixture
def seen(explicit: Settings) -> Iterator[Seen]:
    """The shared worker, which serves version 1 of a model that no other test knows."""
    model = f"m{token_hex(4)}"
    add_model(Path(explicit.models), model, 1)
    with connect(explicit.redis_url) as redis:
        seen = Seen(explicit, redis, model)
        seen.control.load(model)
        yield seen


def test_a_repository_that_is_away_stops_nothing(settings: Settings, tmp_path: Path) -> None:
    add_model(tmp_path / "models", "m", 1)

    with working(settings, tmp_path / "models") as seen:
        (tmp_path / "models").rename(tmp_path / "away")
        with pytest.raises(LoadFailed, match="no such model repository"):
            seen.control.load("m")
        assert seen.answer() == 1.0
        (tmp_path / "away").rename(tmp_path / "models")
        add_version(tmp_path / "models", "m", 2)
        seen.control.load("m")
        assert seen.answer() == 2.0


def test_a_directory_that_is_gone_goes_on_serving(seen: Seen, tmp_path: Path) -> None:
    (seen.repository / seen.model).rename(tmp_path / "gone")

    with pytest.raises(LoadFailed, match="its directory is gone"):
        seen.control.load(seen.model)

    assert seen.answer() == 1.0


def test_content_that_comes_back_after_a_restart_is_served(
    settings: Settings, tmp_path: Path
) -> None:
    file = add_model(tmp_path, "m", 1) / "1" / "model.onnx"

    with working(settings, tmp_path) as seen:
        assert seen.answer() == 1.0
    write_model(file, 7.0)
    with working(settings, tmp_path) as seen:
        assert seen.answer() == 7.0
        write_model(file, 1.0)
        seen.control.load("m")
        assert seen.answer() == 1.0


def test_new_content_is_served_after_redis_forgot_the_old(
    settings: Settings, tmp_path: Path
) -> None:
    file = add_model(tmp_path, "m", 1) / "1" / "model.onnx"

    with working(settings, tmp_path) as seen:
        write_model(file, 5.0)
        seen.control.load("m")
        seen.redis.delete(*seen.redis.keys(f"{seen.prefix}:*"))
        wait_until(lambda: "m" in seen.store.read().served, 20, "Redis was told")
        write_model(file, 6.0)
        seen.control.load("m")
        assert seen.answer() == 6.0


def test_a_change_that_another_one_overtakes_says_so(seen: Seen) -> None:
    add_version(seen.repository, seen.model, 2)
    seen.control.load(seen.model)
    outcomes: list[str] = []

    def use(version: str) -> None:
        try:
            seen.control.use(seen.model, version)
            outcomes.append("done")
        except LoadFailed as error:
            outcomes.append(str(error))

    for _ in range(5):
        threads = [threading.Thread(target=use, args=(version,)) for version in ("1", "2", "1")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=20)
            assert not thread.is_alive()

    assert "done" in outcomes
    overtaken = f"another change of '{seen.model}' came before this one was done"
    assert set(outcomes) <= {"done", overtaken}


def test_a_load_that_fails_leaves_nothing_behind(seen: Seen) -> None:
    with pytest.raises(LoadFailed):
        seen.control.load(seen.model, '{"max_batch_size": "many"}')
    seen.control.use(seen.model, "1")
    directory = seen.repository / "new"
    (directory / "1").mkdir(parents=True)
    (directory / "config.pbtxt").write_text('platform: "nothing"')
    with pytest.raises(LoadFailed, match="new"):
        seen.control.load("new")

    index = {each["name"]: each for each in repository_index(seen.snapshot())}
    assert "platform 'nothing'" in index["new"]["reason"]
    assert seen.store.read().desired[seen.model].config is None


def test_going_back_to_the_latest_version_waits_for_it(seen: Seen) -> None:
    seen.control.use(seen.model, "1")
    add_broken(seen.repository, seen.model, 2)
    with pytest.raises(LoadFailed, match=rf"{seen.model}/2/model\.onnx"):
        seen.control.use(seen.model, "")
    assert seen.answer() == 1.0
    remove_version(seen.repository, seen.model, 2)
    add_version(seen.repository, seen.model, 3)

    seen.control.use(seen.model, "")

    assert seen.answer() == 3.0


def test_a_version_to_use_that_is_gone_after_a_restart_hinders_nobody(
    settings: Settings, tmp_path: Path
) -> None:
    add_model(tmp_path, "m", 1, 2)

    with working(settings, tmp_path) as seen:
        seen.control.use("m", "1")
    remove_version(tmp_path, "m", 1)
    with working(settings, tmp_path) as seen:
        assert seen.answer() == 2.0
        assert seen.snapshot().served["m"].default == "2"
        assert seen.snapshot().all_ready()


def test_what_was_loaded_when_it_stopped_is_loaded_in_mode_explicit(
    settings: Settings, tmp_path: Path
) -> None:
    for name in ("m", "unloaded", "never"):
        add_model(tmp_path, name, 1)
    with working(settings, tmp_path, load_models="m,unloaded") as seen:
        seen.control.unload("unloaded")

    with working(settings, tmp_path, load_models="") as seen:
        assert seen.answer() == 1.0
        assert set(seen.snapshot().served) == {"m"}


def test_a_version_behind_a_link_is_taken_up_when_the_link_changes(
    settings: Settings, tmp_path: Path
) -> None:
    repository = tmp_path / "models"
    add_model(repository, "m")
    for factor in (4, 5):
        (tmp_path / str(factor)).mkdir()
        write_model(tmp_path / str(factor) / "model.onnx", float(factor))
    link = repository / "m" / "1"
    link.symlink_to(tmp_path / "4")

    with working(settings, repository, "poll") as seen:
        assert seen.answer() == 4.0
        link.unlink()
        link.symlink_to(tmp_path / "5")
        wait_until(lambda: seen.answer() == 5.0, 20, "the link's new content serves")


def test_an_ensemble_that_came_before_its_step_is_served_once_the_step_is_there(
    settings: Settings, tmp_path: Path
) -> None:
    add_model(tmp_path, "other", 1)
    (tmp_path / "chain" / "1").mkdir(parents=True)
    tensor = '[ { name: "%s" data_type: TYPE_FP32 dims: [2] } ]'
    (tmp_path / "chain" / "config.pbtxt").write_text(
        'platform: "ensemble"\nmax_batch_size: 8\n'
        f"input {tensor % 'in'}\noutput {tensor % 'out'}\n"
        'ensemble_scheduling { step [ { model_name: "m" model_version: -1 '
        'input_map { key: "x" value: "in" } output_map { key: "y" value: "out" } } ] }'
    )

    with connect(settings.redis_url) as redis:
        settings = replace(
            settings, models=str(tmp_path), model_control_mode="poll", poll_seconds=0.2
        )
        with running_worker(settings, wait_ready=False):
            registry = Registry(redis, settings.key_prefix)
            wait_until(lambda: "chain" in registry.snapshot().failures, 30, "its step is missing")
            add_model(tmp_path, "m", 1)
            wait_until(lambda: registry.snapshot().all_ready(), 30, "both are served")
            assert "chain/1" in {
                spec.key for each in registry.snapshot().models.values() for spec in each.values()
            }


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    directory = add_model(tmp_path, "m", 1)
    os.mkfifo(directory / "pipe")
    (directory / "circle").symlink_to(directory)

    paths = [entry[0] for entry in Planner(Settings(models=str(tmp_path))).signature("m")]

    assert str(directory / "pipe") not in paths
    assert str(directory / "1" / "model.onnx") in paths
    assert len(paths) < 10


@pytest.mark.parametrize(
    ("served", "shadow", "agreed", "difference"),
    [
        (np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32), 2, 1.0),
        (np.zeros((1, 0, 4), np.float32), np.zeros((1, 0, 4), np.float32), 1, 0.0),
        (np.zeros((1, 0, 4), np.float32), np.zeros((1, 2, 4), np.float32), 0, float("inf")),
        (np.zeros((1, 2), np.float32), np.array([[b"a", b"b"]], object), 0, float("inf")),
        (np.array([[b"a"]], object), np.array([[b"a"]], object), 1, 0.0),
        (np.array([[b"a"]], object), np.array([[b"b"]], object), 0, float("inf")),
        (np.array([[np.nan, 1]]), np.array([[np.nan, 1]]), 1, 0.0),
        (np.array(3.0), np.array(3.0), 1, 0.0),
    ],
)
def test_answers_of_any_kind_can_be_compared(
    served: np.ndarray, shadow: np.ndarray, agreed: int, difference: float
) -> None:
    found = compared(InferResult((Tensor.of("y", served),)), InferResult((Tensor.of("y", shadow),)))

    assert found.agreed_count == agreed
    assert found.max_abs_difference == difference
