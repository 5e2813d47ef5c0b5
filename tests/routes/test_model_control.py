"""Load, unload and index over v2, versions in URLs, and the three control modes.

Each mode has one worker, for all tests; each test has models of its own names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest
from answers import answer, refusal
from ferry_processes import running_worker
from flask.testing import FlaskClient
from versioned_models import add_broken, add_model, add_version, remove_version, write_model
from waiting import wait_until

from api.app import create_app
from shared.settings import Settings

ONE = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 10]}]}
POLICIES = {
    "": (["3"], "3"),
    "version_policy { latest { num_versions: 2 } }": (["2", "3"], "3"),
    "version_policy { all {} }": (["1", "2", "3"], "3"),
    "version_policy { specific { versions: [1, 2] } }": (["1", "2"], "2"),
}
"""The versions of 1, 2 and 3 that each serves, and which of them by default."""


@dataclass(frozen=True)
class Serving:
    """An API over one worker of `repository`, asked about one model."""

    client: FlaskClient
    repository: Path
    model: str

    def add(self, *versions: int) -> Path:
        """Put the model into the repository; return its directory."""
        return add_model(self.repository, self.model, *versions)

    def load(self, **body: Any) -> Any:
        return self.client.post(f"/v2/repository/models/{self.model}/load", **body)

    def unload(self) -> Any:
        return self.client.post(f"/v2/repository/models/{self.model}/unload")

    def post(self, version: str = "") -> Any:
        path = f"/v2/models/{self.model}" + (f"/versions/{version}" if version else "")
        return self.client.post(f"{path}/infer", json=ONE)

    def infer(self, version: str = "") -> tuple[str, list[float]]:
        """Return which version answered, and what."""
        body = answer(self.post(version))
        return body["model_version"], body["outputs"][0]["data"]

    def states(self) -> dict[str, str]:
        """Return state and reason by version, "" for the model as a whole."""
        index = answer(self.client.post("/v2/repository/index"))
        return {
            entry.get("version", ""): f"{entry['state']}: {entry['reason']}"
            for entry in index
            if entry["name"] == self.model
        }


@contextmanager
def serving(redis_url: str, repository: Path, mode: str, **more: Any) -> Iterator[Serving]:
    """Serve `repository` in a control mode."""
    settings = Settings(
        redis_url=redis_url, key_prefix=f"control-{mode}", models=str(repository),
        model_control_mode=mode, poll_seconds=0.2, **more,
    )  # fmt: skip
    with running_worker(settings):
        yield Serving(create_app(settings).test_client(), repository, "")


@pytest.fixture(scope="module")
def fixed_worker(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """Mode none: a model for each policy, and `m`."""
    repository = tmp_path_factory.mktemp("fixed")
    add_model(repository, "m", 1)
    for number, policy in enumerate(POLICIES):
        add_model(repository, f"policy{number}", 1, 2, 3, more=policy)
    with serving(redis_url, repository, "none") as found:
        yield found


@pytest.fixture(scope="module")
def explicit_worker(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """Mode explicit: of two models that are there, `first` is loaded at the start."""
    repository = tmp_path_factory.mktemp("explicit")
    add_model(repository, "first", 1)
    add_model(repository, "second", 1)
    with serving(redis_url, repository, "explicit", load_models="first") as found:
        yield found


@pytest.fixture(scope="module")
def polling_worker(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    repository = tmp_path_factory.mktemp("poll")
    add_model(repository, "m", 1)
    with serving(redis_url, repository, "poll") as found:
        yield found


def with_own_model(worker: Serving) -> Serving:
    return replace(worker, model=f"m{token_hex(4)}")


@pytest.fixture
def explicit(explicit_worker: Serving) -> Serving:
    """Mode explicit, and a model that is not there yet."""
    return with_own_model(explicit_worker)


@pytest.fixture
def loaded(explicit: Serving) -> Serving:
    """Mode explicit, and a model whose version 1 is loaded."""
    explicit.add(1)
    assert answer(explicit.load()) == {}
    assert explicit.infer() == ("1", [1, 10])
    return explicit


@pytest.fixture
def polled(polling_worker: Serving) -> Serving:
    """Mode poll, and a model that came later, whose version 1 serves."""
    polled = with_own_model(polling_worker)
    polled.add(1)
    wait_until(lambda: polled.states().get("1") == "READY: ", 20, "the new model serves")
    return polled


@pytest.mark.parametrize(("policy"), POLICIES)
def test_a_version_policy_says_which_versions_are_served(
    fixed_worker: Serving, policy: str
) -> None:
    served, default = POLICIES[policy]
    found = replace(fixed_worker, model=f"policy{list(POLICIES).index(policy)}")

    assert answer(found.client.get(f"/v2/models/{found.model}"))["versions"] == served
    assert found.infer() == (default, [float(default), 10 * float(default)])
    for version in served:
        assert found.infer(version) == (version, [float(version), 10 * float(version)])
    for version in {"1", "2", "3", "4"} - set(served):
        refusal(found.post(version), 404, "unknown_model")


def test_in_mode_none_nothing_is_loaded_by_request(fixed_worker: Serving) -> None:
    found = replace(fixed_worker, model="m")

    for response in (found.load(), found.unload()):
        assert "explicit model load / unload is not allowed" in refusal(response)
    assert found.infer() == ("1", [1, 10])


def test_in_mode_explicit_models_come_and_go_by_request(explicit_worker: Serving) -> None:
    first, second = (replace(explicit_worker, model=name) for name in ("first", "second"))
    assert (first.states(), second.states()) == ({"1": "READY: "}, {"": "UNAVAILABLE: unloaded"})
    refusal(second.post(), 404, "unknown_model")

    assert answer(second.load()) == {}
    assert second.infer() == ("1", [1, 10])
    assert second.states() == {"1": "READY: "}

    assert answer(second.unload()) == {}
    refusal(second.post(), 404, "unknown_model")
    assert (first.states(), second.states()) == ({"1": "READY: "}, {"": "UNAVAILABLE: unloaded"})

    assert answer(second.load(data=b"")) == {}
    assert second.infer() == ("1", [1, 10])


def test_a_model_that_came_later_is_loaded_by_request(explicit: Serving) -> None:
    message = refusal(explicit.load(), 400, "load_failed")
    assert message == f"failed to load '{explicit.model}', no such model in the repository"

    explicit.add(1)

    assert answer(explicit.load()) == {}
    assert explicit.infer() == ("1", [1, 10])


def test_loading_again_takes_up_a_new_version(loaded: Serving) -> None:
    add_version(loaded.repository, loaded.model, 2)
    assert loaded.infer() == ("1", [1, 10])

    assert answer(loaded.load()) == {}

    assert loaded.infer() == ("2", [2, 20])
    # Replaced, it stands by for who names it.
    assert answer(loaded.post("1"))["model_version"] == "1"


def test_loading_again_takes_up_another_content_of_the_same_version(loaded: Serving) -> None:
    write_model(loaded.repository / loaded.model / "1" / "model.onnx", 7.0)

    assert answer(loaded.load()) == {}

    assert loaded.infer() == ("1", [7, 70])


def test_a_broken_version_changes_nothing_but_the_index(loaded: Serving) -> None:
    add_broken(loaded.repository, loaded.model, 2)

    message = refusal(loaded.load(), 400, "load_failed")

    assert f"failed to load '{loaded.model}'" in message and "model.onnx" in message
    assert loaded.infer() == ("1", [1, 10])
    found = loaded.states()
    assert found["1"] == "READY: "
    assert found["2"].startswith(f"UNAVAILABLE: failed to load '{loaded.model}'")
    assert answer(loaded.client.get("/v2/health/ready"))["ready"]
    remove_version(loaded.repository, loaded.model, 2)
    assert answer(loaded.load()) == {}
    assert loaded.states() == {"1": "READY: "}


def test_a_config_that_cannot_be_read_changes_nothing_but_the_index(loaded: Serving) -> None:
    (loaded.repository / loaded.model / "config.pbtxt").write_text("max_batch_size: many")

    assert "config.pbtxt" in refusal(loaded.load(), 400, "load_failed")

    assert loaded.infer() == ("1", [1, 10])
    assert "config.pbtxt" in loaded.states()[""]


def test_a_model_is_loaded_by_the_configuration_of_the_request(explicit: Serving) -> None:
    explicit.add(1, 2)
    tensor = '[{"name": "%s", "data_type": "TYPE_FP32", "dims": [2]}]'
    config = (
        '{"platform": "onnxruntime_onnx", "max_batch_size": 4, "version_policy": {"specific": '
        '{"versions": [1]}}, "input": ' + tensor % "x" + ', "output": ' + tensor % "y" + "}"
    )

    assert answer(explicit.load(json={"parameters": {"config": config}})) == {}
    assert explicit.infer() == ("1", [1, 10])
    found = answer(explicit.client.get(f"/v2/models/{explicit.model}/config"))
    assert found["max_batch_size"] == 4
    assert answer(explicit.load()) == {}
    assert explicit.infer() == ("2", [2, 20])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"parameters": {"config": 1}}, '"config" must be a string'),
        ({"parameters": {"config": "{"}}, "config.pbtxt"),
        ({"parameters": {"config": ""}}, "a JSON object"),
        ({"parameters": {"config": '{"max_batch_size": -1}'}}, "max_batch_size"),
        ({"parameters": {"config": '{"no_field": 1}'}}, "no_field"),
        ({"parameters": {"config": "[]"}}, "a JSON object"),
        (
            {
                "parameters": {
                    "config": '{"parameters": {"architecture": {"string_value": "os:system"}}}'
                }
            },
            "parameters[architecture] 'os:system' cannot be set by request",
        ),
        ({"parameters": {"config": '{"backend": "python"}'}}, "cannot be set by request"),
        ({"parameters": {"file:1/model.onnx": "AAAA"}}, "files are not taken from requests"),
        ({"parameters": {"speed": 1}}, "parameter 'speed'"),
    ],
)
def test_a_wrong_load_is_refused_with_a_sentence(
    explicit: Serving, body: dict[str, Any], message: str
) -> None:
    explicit.add(1)

    response = explicit.load(json=body)

    assert response.status_code == 400
    assert response.get_json()["error"].startswith(f"failed to load '{explicit.model}', ")
    assert message in response.get_json()["error"]


def test_parameters_that_are_none_are_refused(explicit: Serving) -> None:
    assert '"parameters"' in refusal(explicit.load(json={"parameters": [1]}))


@pytest.mark.parametrize("name", ["..", ".hidden", "a" * 200, "m%2F..%2Fm"])
def test_a_name_that_is_none_is_refused(settings: Settings, name: str) -> None:
    client = create_app(replace(settings, model_control_mode="explicit")).test_client()

    response = client.post(f"/v2/repository/models/{name}/load")

    assert response.status_code in {400, 404}


def test_in_mode_poll_a_new_version_is_served_by_itself(polled: Serving) -> None:
    repository, model = polled.repository, polled.model

    refusal(polled.load())
    assert polled.infer() == ("1", [1, 10])
    add_version(repository, model, 2)
    wait_until(lambda: polled.infer() == ("2", [2, 20]), 20, "version 2 serves")
    write_model(repository / model / "2" / "model.onnx", 5.0)
    wait_until(lambda: polled.infer() == ("2", [5, 50]), 20, "its new content serves")
    remove_version(repository, model, 2)
    wait_until(lambda: polled.infer() == ("1", [1, 10]), 20, "version 1 serves again")


def test_in_mode_poll_a_half_written_version_takes_no_requests(
    polled: Serving, tmp_path: Path
) -> None:
    write_model(tmp_path / "whole.onnx", 2.0)
    whole = (tmp_path / "whole.onnx").read_bytes()
    version = polled.repository / polled.model / "2"

    version.mkdir()
    wait_until(lambda: "2" in polled.states(), 20, "the empty directory is seen")
    with open(version / "model.onnx", "wb") as file:
        for first in range(0, len(whole), 8):
            file.write(whole[first : first + 8])
            file.flush()
            assert polled.infer() == ("1", [1, 10])
    wait_until(lambda: polled.infer() == ("2", [2, 20]), 20, "version 2 serves")


def test_in_mode_poll_a_model_that_is_gone_leaves(polled: Serving, tmp_path: Path) -> None:
    assert polled.infer() == ("1", [1, 10])

    (polled.repository / polled.model).rename(tmp_path / "gone")

    wait_until(lambda: "1" not in polled.states(), 20, "it is gone")
    refusal(polled.post(), 404, "unknown_model")
    assert replace(polled, model="m").infer() == ("1", [1, 10])
