"""Versions that Ferry made itself: added to a model whole, with a config that fits all of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from formats_repository import add_format

from shared.errors import BadModel
from worker.repository.adding.versions import Addition, NewVersion, add_versions
from worker.repository.check import Tried, trial_in_a_process
from worker.repository.models import ServedModel, read_model


def everything(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_a_version_of_another_format_leaves_the_first_one_what_it_was(tmp_path: Path) -> None:
    models, made = tmp_path / "models", add_format(tmp_path / "made", "onnx")
    add_format(models, "torchscript", "double")
    with (models / "double" / "config.pbtxt").open("a") as config:
        config.write("# the operator's own words\n")

    def configure(message: Any) -> None:
        message.instance_group.add(count=2)

    new = [NewVersion({"model.onnx": made, "notes.json": made})]
    tried = trial_in_a_process(dict(os.environ))
    added = add_versions(models, Addition("double", new, configure), tried)

    assert added == [models / "double" / "2"]
    first, second = (read_model(models, "double", version) for version in ("1", "2"))
    assert (first.config.backend, second.config.backend) == ("torchscript", "onnxruntime")
    assert second.config.instance_groups[0].count == 2
    assert second.spec.inputs == first.spec.inputs
    assert [*models.iterdir()] == [models / "double"]


def untried(_: ServedModel) -> Tried:
    return Tried()


def test_the_operators_config_stays_as_it_is_where_nothing_changes(tmp_path: Path) -> None:
    models, made = tmp_path / "models", add_format(tmp_path / "made", "onnx")
    add_format(models, "onnx", "double")
    before = everything(models)

    add_versions(models, Addition("double", [NewVersion({"model.onnx": made})]), untried)

    assert everything(models).items() >= before.items()


@pytest.mark.parametrize("kind", ["broken", "no room"])
def test_nothing_changes_when_one_of_several_cannot_be_added(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, made = tmp_path / "models", add_format(tmp_path / "made", "onnx")
    add_format(models, "torchscript", "double")
    before = everything(models)
    other = tmp_path / "other.pt"
    other.write_bytes(b"PK\x03\x04 no model")
    if kind == "no room":
        other, rename = made, os.rename

        def fails_at_last(source: Path, target: Path) -> None:
            if Path(target).name == "3":
                raise OSError(28, "No space left on device")
            rename(source, target)

        monkeypatch.setattr(os, "rename", fails_at_last)
    new = [NewVersion({"model.onnx": made}), NewVersion({f"model{other.suffix}": other})]

    with pytest.raises(BadModel) as raised:
        add_versions(models, Addition("double", new), untried)

    assert "\n" not in str(raised.value)
    assert everything(models) == before
    assert [*models.iterdir()] == [models / "double"]
