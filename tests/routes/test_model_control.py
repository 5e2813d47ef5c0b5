"""Load, unload and index over v2, versions in URLs, and the three control modes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from answers import answer, refusal
from conftest import running_worker
from flask.testing import FlaskClient
from versioned_models import add_broken, add_model, add_version, remove_version, write_model
from waiting import wait_until

from api.app import create_app
from shared.settings import Settings

LOAD, UNLOAD = "/v2/repository/models/m/load", "/v2/repository/models/m/unload"
ONE = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 10]}]}


@contextmanager
def serving(settings: Settings, repository: Path, mode: str, **more: Any) -> Iterator[FlaskClient]:
    """An API over one worker of `repository` in a control mode."""
    settings = replace(
        settings, models=str(repository), model_control_mode=mode, poll_seconds=0.2, **more
    )
    with running_worker(settings):
        yield create_app(settings).test_client()


def infer(client: FlaskClient, version: str = "", name: str = "m") -> tuple[str, list[float]]:
    """Return which version answered, and what."""
    path = f"/v2/models/{name}" + (f"/versions/{version}" if version else "") + "/infer"
    body = answer(client.post(path, json=ONE))
    return body["model_version"], body["outputs"][0]["data"]


def states(client: FlaskClient) -> dict[str, str]:
    index = answer(client.post("/v2/repository/index"))
    return {
        f"{entry['name']}/{entry.get('version', '')}": entry["state"] + ": " + entry["reason"]
        for entry in index
    }


@pytest.mark.parametrize(
    ("policy", "served", "default"),
    [
        ("", ["3"], "3"),
        ("version_policy { latest { num_versions: 2 } }", ["2", "3"], "3"),
        ("version_policy { all {} }", ["1", "2", "3"], "3"),
        ("version_policy { specific { versions: [1, 2] } }", ["1", "2"], "2"),
    ],
)
def test_a_version_policy_says_which_versions_are_served(
    settings: Settings, tmp_path: Path, policy: str, served: list[str], default: str
) -> None:
    add_model(tmp_path, "m", 1, 2, 3, more=policy)

    with serving(settings, tmp_path, "none") as client:
        assert answer(client.get("/v2/models/m"))["versions"] == served
        assert infer(client) == (default, [float(default), 10 * float(default)])
        for version in served:
            assert infer(client, version) == (version, [float(version), 10 * float(version)])
        for version in {"1", "2", "3", "4"} - set(served):
            path = f"/v2/models/m/versions/{version}/infer"
            refusal(client.post(path, json=ONE), 404, "unknown_model")


def test_in_mode_none_nothing_is_loaded_by_request(settings: Settings, tmp_path: Path) -> None:
    add_model(tmp_path, "m", 1)

    with serving(settings, tmp_path, "none") as client:
        for path in (LOAD, UNLOAD):
            assert "explicit model load / unload is not allowed" in refusal(client.post(path))
        assert infer(client) == ("1", [1, 10])


def test_in_mode_explicit_models_come_and_go_by_request(settings: Settings, tmp_path: Path) -> None:
    add_model(tmp_path, "m", 1)
    add_model(tmp_path, "first", 1)

    with serving(settings, tmp_path, "explicit", load_models="first") as client:
        assert states(client) == {"first/1": "READY: ", "m/": "UNAVAILABLE: unloaded"}
        refusal(client.post("/v2/models/m/infer", json=ONE), 404, "unknown_model")

        assert answer(client.post(LOAD)) == {}
        assert infer(client) == ("1", [1, 10])
        assert states(client)["m/1"] == "READY: "

        assert answer(client.post(UNLOAD)) == {}
        refusal(client.post("/v2/models/m/infer", json=ONE), 404, "unknown_model")
        assert states(client) == {"first/1": "READY: ", "m/": "UNAVAILABLE: unloaded"}

        assert answer(client.post(LOAD, data=b"")) == {}
        assert infer(client) == ("1", [1, 10])


def test_a_model_that_came_later_is_loaded_by_request(settings: Settings, tmp_path: Path) -> None:
    with serving(settings, tmp_path, "explicit") as client:
        message = refusal(client.post(LOAD), 400, "load_failed")
        assert message == "failed to load 'm', no such model in the repository"
        add_model(tmp_path, "m", 1)
        assert answer(client.post(LOAD)) == {}
        assert infer(client) == ("1", [1, 10])


def test_loading_again_takes_up_a_new_version(settings: Settings, tmp_path: Path) -> None:
    add_model(tmp_path, "m", 1)

    with serving(settings, tmp_path, "explicit", load_models="*") as client:
        add_version(tmp_path, "m", 2)
        assert infer(client) == ("1", [1, 10])
        assert answer(client.post(LOAD)) == {}
        assert infer(client) == ("2", [2, 20])
        refusal(client.post("/v2/models/m/versions/1/infer", json=ONE), 404, "unknown_model")


def test_loading_again_takes_up_another_content_of_the_same_version(
    settings: Settings, tmp_path: Path
) -> None:
    directory = add_model(tmp_path, "m", 1)

    with serving(settings, tmp_path, "explicit", load_models="*") as client:
        assert infer(client) == ("1", [1, 10])
        write_model(directory / "1" / "model.onnx", 7.0)
        assert answer(client.post(LOAD)) == {}
        assert infer(client) == ("1", [7, 70])


def test_a_broken_version_changes_nothing_but_the_index(settings: Settings, tmp_path: Path) -> None:
    add_model(tmp_path, "m", 1)

    with serving(settings, tmp_path, "explicit", load_models="*") as client:
        add_broken(tmp_path, "m", 2)
        message = refusal(client.post(LOAD), 400, "load_failed")
        assert "failed to load 'm'" in message and "model.onnx" in message
        assert infer(client) == ("1", [1, 10])
        found = states(client)
        assert found["m/1"] == "READY: "
        assert found["m/2"].startswith("UNAVAILABLE: failed to load 'm'")
        assert answer(client.get("/v2/health/ready"))["ready"]
        remove_version(tmp_path, "m", 2)
        assert answer(client.post(LOAD)) == {}
        assert states(client) == {"m/1": "READY: "}


def test_a_config_that_cannot_be_read_changes_nothing_but_the_index(
    settings: Settings, tmp_path: Path
) -> None:
    directory = add_model(tmp_path, "m", 1)

    with serving(settings, tmp_path, "explicit", load_models="*") as client:
        (directory / "config.pbtxt").write_text("max_batch_size: many")
        assert "config.pbtxt" in refusal(client.post(LOAD), 400, "load_failed")
        assert infer(client) == ("1", [1, 10])
        assert "config.pbtxt" in states(client)["m/"]


def test_a_model_is_loaded_by_the_configuration_of_the_request(
    settings: Settings, tmp_path: Path
) -> None:
    add_model(tmp_path, "m", 1, 2)
    tensor = '[{"name": "%s", "data_type": "TYPE_FP32", "dims": [2]}]'
    config = (
        '{"platform": "onnxruntime_onnx", "max_batch_size": 4, "version_policy": {"specific": '
        '{"versions": [1]}}, "input": ' + tensor % "x" + ', "output": ' + tensor % "y" + "}"
    )

    with serving(settings, tmp_path, "explicit") as client:
        assert answer(client.post(LOAD, json={"parameters": {"config": config}})) == {}
        assert infer(client) == ("1", [1, 10])
        assert answer(client.get("/v2/models/m/config"))["max_batch_size"] == 4
        assert answer(client.post(LOAD)) == {}
        assert infer(client) == ("2", [2, 20])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"parameters": {"config": 1}}, '"config" must be a string'),
        ({"parameters": {"config": "{"}}, "config.pbtxt"),
        ({"parameters": {"file:1/model.onnx": "AAAA"}}, "files are not taken from requests"),
        ({"parameters": {"speed": 1}}, "parameter 'speed'"),
        ({"parameters": [1]}, '"parameters"'),
    ],
)
def test_a_wrong_load_is_refused_with_a_sentence(
    settings: Settings, tmp_path: Path, body: dict[str, Any], message: str
) -> None:
    add_model(tmp_path, "m", 1)

    with serving(settings, tmp_path, "explicit") as client:
        response = client.post(LOAD, json=body)
        assert response.status_code == 400
        assert message in response.get_json()["error"]


@pytest.mark.parametrize("name", ["..", ".hidden", "a" * 200, "m%2F..%2Fm"])
def test_a_name_that_is_none_is_refused(settings: Settings, name: str) -> None:
    client = create_app(replace(settings, model_control_mode="explicit")).test_client()

    response = client.post(f"/v2/repository/models/{name}/load")

    assert response.status_code in {400, 404}


def test_in_mode_poll_a_new_version_is_served_by_itself(settings: Settings, tmp_path: Path) -> None:
    directory = add_model(tmp_path, "m", 1)

    with serving(settings, tmp_path, "poll") as client:
        refusal(client.post(LOAD))
        add_version(tmp_path, "m", 2)
        wait_until(lambda: infer(client) == ("2", [2, 20]), 20, "version 2 serves")
        write_model(directory / "2" / "model.onnx", 5.0)
        wait_until(lambda: infer(client) == ("2", [5, 50]), 20, "its new content serves")
        remove_version(tmp_path, "m", 2)
        wait_until(lambda: infer(client) == ("1", [1, 10]), 20, "version 1 serves again")
        add_model(tmp_path, "late", 1)
        wait_until(lambda: states(client).get("late/1") == "READY: ", 20, "the new model serves")


def test_in_mode_poll_a_half_written_version_takes_no_requests(
    settings: Settings, tmp_path: Path
) -> None:
    directory = add_model(tmp_path, "m", 1)
    write_model(tmp_path / "whole.onnx", 2.0)
    whole = (tmp_path / "whole.onnx").read_bytes()

    with serving(settings, tmp_path, "poll") as client:
        (directory / "2").mkdir()
        wait_until(lambda: "m/2" in states(client), 20, "the empty directory is seen")
        with open(directory / "2" / "model.onnx", "wb") as file:
            for first in range(0, len(whole), 8):
                file.write(whole[first : first + 8])
                file.flush()
                assert infer(client) == ("1", [1, 10])
        wait_until(lambda: infer(client) == ("2", [2, 20]), 20, "version 2 serves")


def test_in_mode_poll_a_model_that_is_gone_leaves(settings: Settings, tmp_path: Path) -> None:
    add_model(tmp_path, "m", 1)
    directory = add_model(tmp_path, "other", 1)

    with serving(settings, tmp_path, "poll") as client:
        assert infer(client, name="other") == ("1", [1, 10])
        directory.rename(tmp_path.parent / f"{tmp_path.name}-gone")
        wait_until(lambda: "other/1" not in states(client), 20, "it is gone")
        refusal(client.post("/v2/models/other/infer", json=ONE), 404, "unknown_model")
        assert infer(client) == ("1", [1, 10])
