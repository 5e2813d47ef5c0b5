"""What a job reads and writes lies inside of the operator's directories, links followed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from jobs import functions
from samples.tiny import make
from shared.errors import BadRequest
from shared.jobs import places
from shared.jobs.orders import read_order
from shared.settings import Settings


@pytest.fixture
def inside(settings: Settings, tmp_path: Path) -> Settings:
    for name in ("in", "out"):
        (tmp_path / name / "deep").mkdir(parents=True)
    (tmp_path / "secret.png").touch()
    (tmp_path / "in" / "deep" / "rows.csv").touch()
    directories = {"job_inputs": str(tmp_path / "in"), "job_outputs": str(tmp_path / "out")}
    return replace(settings, **directories)


@pytest.mark.parametrize("name", [".", "./", "deep/.."])
def test_the_directory_itself_is_no_place_to_write(inside: Settings, name: str) -> None:
    with pytest.raises(BadRequest, match="is the directory itself"):
        places.output_file(inside, "output", name)


@pytest.mark.parametrize("data", ["deep", "deep/rows.csv", "."])
def test_a_picture_may_be_no_link_that_leads_out(
    inside: Settings, tmp_path: Path, data: str
) -> None:
    deep = tmp_path / "in" / "deep"
    (deep / "same.csv").symlink_to(deep / "rows.csv")
    assert places.data_files(inside, "data", data).exists()

    (deep / "one.png").symlink_to(tmp_path / "secret.png")

    with pytest.raises(BadRequest, match=r"'one.png' .* is a link that leads outside"):
        places.data_files(inside, "data", data)


@pytest.mark.parametrize(("kind", "more"), [("edge", {"to": "tflite"}), ("verify", {})])
def test_what_a_version_says_it_was_exported_from_is_imported_from_the_list_alone(
    inside: Settings, tmp_path: Path, kind: str, more: dict[str, Any]
) -> None:
    make(tmp_path / "models" / "tiny")
    (tmp_path / "models" / "tiny" / "1" / "export.json").write_text(
        '{"original": "evil:make", "weights": null, "arguments": "{}"}'
    )
    run = functions.Run("0" * 32, "", cast(Any, None), inside, {}, cast(Any, None))
    run = replace(run, settings=replace(inside, models=str(tmp_path / "models")))

    with pytest.raises(BadRequest, match="FERRY_JOB_MODULES"):
        functions.FUNCTIONS[kind](read_order(kind, {"model": "tiny", **more}), run)
