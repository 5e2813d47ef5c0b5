"""`ferry models check`: what is wrong with a repository, one line each, and an exit code for CI."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from echo_models import Identity, config, tensors
from ferry_processes import ROOT
from scripted_models import Deadly
from stand_ins import text_model, torchscript

from ferry.cli import main

PLAIN = config(4, *(tensors(kind, ("x", "FP32", "[2]")) for kind in ("input", "output")))
ENSEMBLE = """
platform: "ensemble" max_batch_size: 4
input [ { name: "x" data_type: TYPE_FP32 dims: [2] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [2] } ]
ensemble_scheduling { step [ { model_name: "%s" model_version: -1
  input_map { key: "x" value: "x" } output_map { key: "x" value: "y" } } ] }
"""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A repository with one good model, `plain`."""
    torchscript(tmp_path, "plain", Identity(), PLAIN)
    return tmp_path


def write(models: Path, name: str, text: str, *, file: bytes | None = b"model") -> Path:
    directory = models / name
    (directory / "1").mkdir(parents=True)
    (directory / "config.pbtxt").write_text(text)
    if file is not None:
        (directory / "1" / "model.pt").write_bytes(file)
    return directory


def check(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, list[str]]:
    """Return the exit code and what was printed."""
    code = main(["models", "check", *map(str, arguments)])
    return code, capsys.readouterr().out.splitlines()


def test_a_good_repository_is_clean(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(capsys, models) == (0, ["1 model, 1 version: 0 problems"])


def test_every_model_and_version_is_read_and_each_problem_is_one_line(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad_dims = write(models, "a", 'platform: "pytorch_libtorch"\n' + PLAIN.replace("[2]", "[0]"))
    empty = write(models, "b", 'platform: "pytorch_libtorch"\n' + PLAIN, file=b"")
    (empty / "2").mkdir()
    (models / "c").mkdir()
    (models / "-d").mkdir()
    (models / ".hidden").mkdir()

    code, lines = check(capsys, models)

    assert code == 1
    assert lines == [
        f"{models}/-d: the name '-d' must be letters, digits, '_', '.' and '-', and begin with "
        "none of the last two",
        f"{bad_dims}/config.pbtxt: tensor 'x': dims [0] must be positive or -1",
        f"{empty}/1/model.pt is missing or empty",
        f"{empty}/2/model.pt is missing or empty",
        f"{models}/c: no config.pbtxt, and no version directory with a model file in it",
        "3 models, 4 versions: 5 problems",
    ]


def test_a_terminal_of_another_encoding_gets_every_line(tmp_path: Path) -> None:
    (tmp_path / "größe").mkdir()

    done = subprocess.run(
        [sys.executable, "-m", "ferry", "models", "check", str(tmp_path)],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        cwd=ROOT,
        capture_output=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 1
    assert f"{tmp_path}/gr\\xf6\\xdfe: the name ".encode() in done.stdout
    assert done.stderr == b""


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("sequence_batching { }", "config.pbtxt: sequence_batching { } is not supported"),
        (
            "version_policy { specific { versions: [1, 7] } }",
            "config.pbtxt: version_policy.specific.versions: 7 is not among ['1']",
        ),
        (
            'model_warmup [ { name: "w" batch_size: 1 inputs { key: "x" value {'
            ' data_type: TYPE_FP32 dims: [2] input_data_file: "row" } } } ]',
            "config.pbtxt: model_warmup 'w': input 'x': input_data_file",
        ),
    ],
)
def test_a_problem_names_the_file_and_the_field(
    models: Path, capsys: pytest.CaptureFixture[str], text: str, problem: str
) -> None:
    directory = write(models, "m", 'platform: "pytorch_libtorch"\n' + PLAIN + text)

    code, lines = check(capsys, models)

    assert code == 1
    assert lines[0].startswith(f"{directory}/{problem}")


def test_labels_and_tokenizers_are_looked_at(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text_model(models, "words", max_length=8, truncate=True)
    (models / "words" / "labels.txt").write_text("negative\n")
    (models / "words" / "tokenizer.json").write_text('{"model": {}}')

    code, lines = check(capsys, models)

    assert code == 1
    assert lines[0].startswith(f"{models}/words/tokenizer.json: no tokenizer of the `tokenizers`")
    assert lines[1] == (
        f"note: {models}/words/config.pbtxt: output[logits].label_filename has 1 labels for "
        "2 classes"
    )


def test_what_has_no_effect_is_a_note_and_no_problem(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (models / "plain" / "config.pbtxt").open("a") as file:
        file.write("optimization { eager_batching: true }\n")
    (models / "plain" / "02").mkdir()

    code, lines = check(capsys, models)

    assert code == 0
    assert lines[:-1] == [
        f"note: {models}/plain/02: no version, those are numbers from 1 without leading zeros",
        f"note: {models}/plain/config.pbtxt: optimization.eager_batching true has no effect: a "
        "batch is joined once it has left the queue",
    ]


def test_the_steps_of_ensembles_must_be_there(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(models, "good", ENSEMBLE % "plain", file=None)
    bad = write(models, "lost", ENSEMBLE % "nowhere", file=None)

    code, lines = check(capsys, models)

    assert code == 1
    assert lines[0].startswith(f"{bad}/config.pbtxt: step 1: the repository has no model 'nowhere'")
    assert lines[1] == "3 models, 3 versions: 1 problem"


@pytest.mark.usefixtures("forked")
def test_loading_finds_what_reading_does_not(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = write(models, "damaged", 'platform: "pytorch_libtorch"\n' + PLAIN)
    x = 'inputs { key: "x" value { data_type: TYPE_FP32 dims: [2] input_data_file: "13" } }'
    torchscript(models, "deadly", Deadly(), f"{PLAIN} model_warmup [ {{ batch_size: 1 {x} }} ]")
    (models / "deadly" / "warmup").mkdir()
    (models / "deadly" / "warmup" / "13").write_bytes(torch.full((2,), 13.0).numpy().tobytes())

    assert check(capsys, models)[0] == 0
    code, lines = check(capsys, models, "--load")

    assert code == 1
    assert lines[0].startswith(f"{damaged}/1/model.pt: ")
    assert lines[1] == f"{models}/deadly/1/model.pt: its process ended with exit code -11"
    assert lines[2] == "3 models, 3 versions: 2 problems"


def test_programs_get_one_json_object(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = check(capsys, models, "--json")

    assert code == 0
    assert json.loads(lines[0]) == {"models": 1, "versions": 1, "problems": [], "notes": []}


def test_without_a_directory_it_is_the_repository_of_the_settings(
    models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FERRY_MODELS", str(models))

    assert check(capsys) == (0, ["1 model, 1 version: 0 problems"])


def test_a_directory_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "check", str(tmp_path / "nowhere")]) == 1
    assert "nowhere: no such model repository" in capsys.readouterr().err


def test_the_command_loads_no_framework_to_read_a_repository(models: Path) -> None:
    code = (
        "import sys; from ferry.cli import main; main(['models', 'check', sys.argv[1]]);"
        "print(sorted({'torch', 'onnxruntime'} & sys.modules.keys()))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, str(models)], cwd=ROOT, capture_output=True, check=True
    )

    assert done.stdout.decode().splitlines() == ["1 model, 1 version: 0 problems", "[]"]
