"""`ferry models`: what it shows and changes, with a real worker and a real API."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
from answers import answer
from ferry_processes import running_worker
from flask.testing import FlaskClient
from versioned_models import add_broken, add_model, add_version
from waiting import wait_until

from api.app import create_app
from ferry.cli import main
from ferry.commands.swap_in import Expected, Pin, serving_version, swap_in
from ferry.errors import CannotStart
from shared.errors import LoadFailed
from shared.registry.desired_store import DesiredStore
from shared.settings import Settings
from shared.wire.client import connect
from worker.optimise.tuning import optimise as tuning
from worker.optimise.tuning.optimise import Optimised

REPORT = {"model": "shown", "version": "1", "complete": True, "variants": []}
ONE = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 10]}]}


MODELS = ["swapped", "shown", "copied", "taken", "returned"]
"""Each of the tests that change something has one of its own, which begins with version 1."""


@pytest.fixture(scope="module")
def worker(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A worker in mode explicit with everything loaded; version 2 of `m` came later, broken."""
    repository = tmp_path_factory.mktemp("models")
    for model in ("m", *MODELS):
        add_model(repository, model, 1)
    add_model(repository, "other", 4)
    settings = Settings(
        redis_url=redis_url, key_prefix="ferry-models", models=str(repository),
        model_control_mode="explicit", load_models="*",
    )  # fmt: skip
    with running_worker(settings):
        add_broken(repository, "m", 2)
        yield settings


@pytest.fixture
def repository(worker: Settings) -> Path:
    return Path(worker.models)


@pytest.fixture
def client(worker: Settings, monkeypatch: pytest.MonkeyPatch) -> FlaskClient:
    """An API over the worker; commands look there too."""
    for name in [name for name in os.environ if name.startswith("FERRY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("REDIS_URL", worker.redis_url)
    monkeypatch.setenv("FERRY_KEY_PREFIX", worker.key_prefix)
    return create_app(worker).test_client()


def version_of(client: FlaskClient, model: str = "m") -> str:
    version: str = answer(client.post(f"/v2/models/{model}/infer", json=ONE))["model_version"]
    return version


def wait_until_asked(client: FlaskClient, *versions: str) -> None:
    """Return once the API, which looks for changes now and then, asks these versions."""
    wait_until(
        lambda: {version_of(client, "swapped") for _ in range(60)} == set(versions),
        1,
        f"requests go to {versions}",
    )


def models(capsys: pytest.CaptureFixture[str]) -> dict[str, tuple[str, str]]:
    """Return state and requests of every version."""
    capsys.readouterr()
    assert main(["models", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    return {f"{row['model']}/{row['version']}": (row["state"], row["requests"]) for row in rows}


def test_versions_are_loaded_used_split_and_unloaded(
    client: FlaskClient, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = models(capsys)
    assert (found["swapped/1"], found["other/4"]) == (("READY", "all"), ("READY", "all"))

    add_version(repository, "swapped", 2)
    assert main(["models", "load", "swapped"]) == 0
    wait_until_asked(client, "2")
    assert main(["models", "use", "swapped", "1"]) == 0
    assert "requests go to version 1: all, version 2: named" in capsys.readouterr().out
    wait_until_asked(client, "1")
    assert main(["models", "split", "swapped", "1=3", "2=1"]) == 0
    assert models(capsys)["swapped/1"] == ("READY", "75%")
    wait_until_asked(client, "1", "2")
    assert main(["models", "split", "swapped", "off"]) == 0
    wait_until_asked(client, "1")
    assert main(["models", "use", "swapped", "latest"]) == 0
    wait_until_asked(client, "2")
    assert main(["models", "unload", "swapped"]) == 0
    assert models(capsys)["swapped/"] == ("UNAVAILABLE", "none")


def test_the_table_and_one_model_are_shown(
    client: FlaskClient, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "list"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == [
        "model", "version", "state", "requests", "instances", "reason",
    ]  # fmt: skip
    assert ["shown", "1", "READY", "all", "1"] in [line.split() for line in out.splitlines()]

    assert main(["models", "show", "shown"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [each["version"] for each in shown["versions"]] == ["1"]
    assert shown["configs"]["1"]["max_batch_size"] == 32
    assert main(["models", "show", "unknown"]) == 1


def test_a_shadow_gets_copies_and_is_compared(
    client: FlaskClient, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_version(repository, "copied", 3, factor=1.5)

    assert main(["models", "shadow", "copied", "3"]) == 0
    for _ in range(20):
        assert version_of(client, "copied") == "1"

    def compared() -> dict[str, float]:
        capsys.readouterr()
        assert main(["models", "compare", "copied", "--json"]) == 0
        row: dict[str, float] = json.loads(capsys.readouterr().out)[0]
        return row

    wait_until(lambda: compared()["request_count"] == 20, 20, "all were compared")
    found = compared()
    assert (found["version"], found["shadow"]) == ("1", "3")
    assert (found["failed_count"], found["skipped_count"]) == (0, 0)
    assert found["agreement"] == 1.0
    assert found["max_abs_difference"] == 5.0
    assert found["served_seconds"] > 0 and found["shadow_seconds"] > 0
    assert models(capsys)["copied/3"] == ("READY", "copies")
    assert main(["models", "compare", "copied"]) == 0
    assert "100.00%" in capsys.readouterr().out

    assert main(["models", "shadow", "copied", "off"]) == 0
    assert version_of(client, "copied") == "1"
    assert compared()["request_count"] == 20


@pytest.fixture
def asked(client: FlaskClient) -> Iterator[Callable[[str], None]]:
    """Have a model asked all the time, until the test ends; what is not answered fails it."""
    ends, threads = Event(), []

    def ask(model: str) -> None:
        while not ends.is_set():
            version_of(client, model)

    def begin(model: str) -> None:
        threads.append(pool.submit(ask, model))

    with ThreadPoolExecutor(1) as pool:
        yield begin
        ends.set()
        for thread in threads:
            thread.result()


def held(model: str) -> Pin:
    pin = Pin(os.environ, model)
    pin.hold()
    return pin


def wished(worker: Settings, model: str) -> str:
    """Return the version that operators want requests to go to; empty for the highest."""
    desired = DesiredStore(connect(worker.redis_url), worker.key_prefix).read().desired
    return desired[model].use if model in desired else ""


def test_a_version_takes_over_in_steps_while_it_is_asked(
    client: FlaskClient, repository: Path, asked: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    asked("taken")
    pin = held("taken")
    add_version(repository, "taken", 2)

    swap_in(os.environ, "taken", pin.version, "2", Expected(0.95))

    assert version_of(client, "taken") == "2"
    said = capsys.readouterr().out
    assert "version 2 gave the same class for 100.00% of" in said
    assert "all requests go to version 2" in said


def test_a_version_that_answers_otherwise_takes_no_request(
    client: FlaskClient, repository: Path, asked: Callable[[str], None]
) -> None:
    asked("returned")
    pin = held("returned")
    add_version(repository, "returned", 2, factor=-1)

    with pytest.raises(LoadFailed, match="went back to version 1: version 2 gave the same class"):
        swap_in(os.environ, "returned", pin.version, "2", Expected(0.95))

    assert version_of(client, "returned") == "1"


def test_what_was_judged_with_near_ties_is_expected_of_a_shadow_within_its_interval() -> None:
    variant = {"chosen": True, "agreement": 0.9}
    report = {"variants": [{"chosen": False, "agreement": None}, variant]}
    judged, said = Expected.of(None, report), Expected.of(0.9, report)

    assert judged.share == said.share == 0.9
    assert judged.is_met(42, 50) and not said.is_met(42, 50)
    assert not judged.is_met(38, 50)
    variant["agreement"] = 0.99
    assert Expected.of(None, report).share == 0.95


def test_what_nobody_serves_cannot_be_swapped(client: FlaskClient) -> None:
    with pytest.raises(CannotStart, match="no Ferry that runs here serves 'nothing'"):
        serving_version(os.environ, "nothing")


@pytest.mark.parametrize("before", ["", "1"])
def test_a_pin_that_is_undone_leaves_what_was_wished_before(
    worker: Settings, client: FlaskClient, before: str
) -> None:
    assert main(["models", "use", "shown", before or "latest"]) == 0
    pin = held("shown")
    assert wished(worker, "shown") == "1"

    pin.undo()

    assert wished(worker, "shown") == before


def test_ferry_optimise_pins_nothing_where_nothing_is_added(
    worker: Settings, client: FlaskClient, repository: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def stays(*_: object, **__: object) -> Optimised:
        (repository / "shown" / "1" / "report.html").write_text("<title>it stays</title>")
        return Optimised(REPORT, repository / "shown" / "1", None)

    def interrupted(*_: object, before_adding: Callable[[], None], **__: object) -> Optimised:
        before_adding()
        assert wished(worker, "shown") == "1"
        raise KeyboardInterrupt

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(tuning, "optimise", stays)
    options = ["optimise", "shown", "--models", str(repository), "--serve"]
    assert main(["models", "use", "shown", "latest"]) == 0

    assert main(options) == 0
    assert wished(worker, "shown") == ""
    assert client.get("/models/shown/report").data == b"<title>it stays</title>"

    monkeypatch.setattr(tuning, "optimise", interrupted)
    assert main(options) == 130
    assert wished(worker, "shown") == ""


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["use", "m", "9"], "failed to load 'm', it has no version 9"),
        (["use", "m", "2"], "failed to load 'm'"),
        (["use", "m", "one"], "version 'one' must be a whole number"),
        (["use", "unknown", "1"], "no version of this model is served"),
        (["split", "m", "1=50", "9=50"], "it has no version 9"),
        (["split", "m", "1:50"], "must be VERSION=WEIGHT"),
        (["split", "m", "1=0"], "must be VERSION=WEIGHT"),
        (["split", "m", "1=50", "1=50"], "each version may have one share"),
        (["shadow", "m", "1"], "version 1 of 'm' serves"),
        (["compare", "m"], "has no shadow"),
        (["load", "unknown"], "no such model in the repository"),
        (["load", "m", "--config", "/nowhere"], "/nowhere"),
        (["unload", "unknown"], "no such model in the repository"),
        (["load", "../m"], "must match"),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(
    client: FlaskClient,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    message: str,
) -> None:
    assert main(["models", *command]) == 1
    assert message in capsys.readouterr().err
    assert version_of(client) == "1"
    assert models(capsys)["m/1"] == ("READY", "all")


def test_in_mode_none_nothing_is_loaded_but_versions_are_chosen(
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    add_model(tmp_path, "m", 1)
    settings = replace(settings, models=str(tmp_path))
    monkeypatch.setenv("REDIS_URL", settings.redis_url)
    monkeypatch.setenv("FERRY_KEY_PREFIX", settings.key_prefix)

    with running_worker(settings):
        assert main(["models", "load", "m"]) == 1
        assert "FERRY_MODEL_CONTROL_MODE" in capsys.readouterr().err
        add_version(tmp_path, "m", 2)
        assert main(["models", "use", "m", "2"]) == 0
        assert models(capsys)["m/2"] == ("READY", "all")
