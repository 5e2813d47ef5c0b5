"""`ferry add model.mar`: TorchServe's archives, taken over as far as they can be, run by nobody."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from scripted_models import save_scripted

from ferry.cli import main
from worker.repository.adding import staging
from worker.repository.check import Tried
from worker.repository.model_config import read_message

CODE = "import pathlib\npathlib.Path('ran').touch()\nclass Net: ...\n"


class Means(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to work in, with ./models; the trial, which takes seconds, is left out."""
    for name in [name for name in os.environ if name.startswith("FERRY_") or name == "REDIS_URL"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FERRY_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("FERRY_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(staging, "trial_in_a_process", lambda _: lambda _: Tried())
    return tmp_path


def archive(members: dict[str, Any], **model: Any) -> Path:
    """Write net.mar with a scripted model.pt, a handler that must not run, and these members."""
    save_scripted(Means(), Path("model.pt"))
    said = {"modelName": "net", "serializedFile": "model.pt", "handler": "handler.py", **model}
    manifest = {"runtime": "python", "model": said, "archiverVersion": "0.12.0"}
    packed = {
        "MAR-INF/MANIFEST.json": json.dumps(manifest),
        "model.pt": Path("model.pt").read_bytes(),
        "handler.py": CODE,
    }
    with zipfile.ZipFile("net.mar", "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in (packed | members).items():
            if content is not None:
                file.writestr(name, content)
    return Path("net.mar")


def test_a_picture_classifier_comes_with_its_classes_and_its_pre_processing(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"1": ["n02", "deck  chair"], "0": ["n01", "tench"], "2": ["n03", "palace"]}
    archive(
        {
            "index_to_name.json": json.dumps(names),
            "requirements.txt": "left-pad",
            "notes.txt": "",
            "deeper/x.bin": "",
        },
        handler="image_classifier", modelVersion="2.1", requirementsFile="requirements.txt",
    )  # fmt: skip

    assert main(["add", "net.mar", "--parameter", "image_std=0.5,0.5,0.5"]) == 0

    model = here / "models" / "net"
    assert (model / "labels.txt").read_text() == "tench\ndeck chair\npalace\n"
    assert (model / "1" / "model.pt").read_bytes() == Path("model.pt").read_bytes()
    assert [path.name for path in (model / "1").iterdir()] == ["model.pt"]
    parameters = read_message(model / "config.pbtxt").parameters
    told = {key: value.string_value for key, value in parameters.items()}
    assert told["image_mean"] == "0.485,0.456,0.406"
    assert told["image_std"] == "0.5,0.5,0.5"
    assert (told["image_resize_size"], told["output_activation"]) == ("256", "softmax")
    out = capsys.readouterr().out
    for sentence in (
        "image_classifier becomes parameters",
        "requirements.txt is left out: its packages are not installed",
        "its version '2.1' is left out",
        "deeper/x.bin, handler.py, notes.txt: left out",
        "from net.mar, ",
    ):
        assert sentence in out, sentence


def test_its_own_handler_is_named_and_not_run(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive({}, modelName="my net!")

    assert main(["add", "net.mar", "--input", "x:3x8x8"]) == 0

    assert "its handler handler.py is left out: say what it does" in capsys.readouterr().out
    assert (here / "models" / "my_net" / "1" / "model.pt").is_file()
    assert not (here / "ran").exists()


def test_the_class_of_an_eager_model_is_named_and_then_its_file_comes_along(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "import torch\n\nclass Net(torch.nn.Linear):\n    ..."
    torch.save({"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, "weights.pth")
    content = Path("weights.pth").read_bytes()
    archive(
        {"weights.pth": content, "arch.py": code}, serializedFile="weights.pth", modelFile="arch.py"
    )

    assert main(["add", "net.mar", "--input", "x:4"]) == 1
    assert "is code: look at it, then add --architecture arch:Net" in capsys.readouterr().err
    assert not (here / "models").exists()

    options = ["--input", "x:4", "--output", "y:2", "--architecture", "arch:Net"]
    options += ["--parameter", 'architecture_arguments={"in_features": 4, "out_features": 2}']
    assert main(["add", "net.mar", *options]) == 0
    assert (here / "models" / "net" / "1" / "arch.py").read_text() == code


BIG = b"\0" * (32 << 20)
FAULTS = {
    "a path": (
        {},
        {"serializedFile": "../model.pt"},
        "names '../model.pt', expected a file's name",
    ),
    "an absolute path": ({}, {"serializedFile": "/etc/passwd"}, "names '/etc/passwd', expected"),
    "up": ({}, {"serializedFile": ".."}, "names '..', expected a file's name alone"),
    "another system's path": ({}, {"modelFile": "..\\x.py"}, "expected a file's name alone"),
    "a file that is not there": (
        {},
        {"serializedFile": "no.pt"},
        "which the archive does not hold",
    ),
    "no model": ({}, {"serializedFile": 7}, "names no serializedFile, so that only its handler"),
    "a bomb": ({"big.pt": BIG}, {"serializedFile": "big.pt"}, "big.pt unpacks to 33554432 bytes"),
    "a bomb of names": ({"index_to_name.json": BIG}, {}, "index_to_name.json unpacks to 33554432"),
    "a pickle": ({"model.pt": pickle.dumps(dict)}, {}, "ferry: net.mar/model.pt: "),
    "no manifest": ({"MAR-INF/MANIFEST.json": None}, {}, "no archive of TorchServe"),
    "a broken manifest": ({"MAR-INF/MANIFEST.json": "{"}, {}, "MANIFEST.json is no JSON"),
    "a deep manifest": ({"MAR-INF/MANIFEST.json": "[" * 200_000}, {}, "MANIFEST.json is no JSON"),
    "a list": ({"MAR-INF/MANIFEST.json": "[1]"}, {}, "has no object 'model'"),
    "a bad name": ({}, {"modelName": "../../up"}, ""),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_an_archive_is_one_sentence_and_nothing_is_written(
    here: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    members, model, sentence = FAULTS[fault]
    archive(members, **model)
    before = sorted(here.parent.rglob("*"))

    code = main(["add", "net.mar", *(() if fault == "a bad name" else ("--input", "x:3x8x8"))])

    err = capsys.readouterr().err
    assert code == 1
    assert sentence in err
    assert err.startswith("ferry: ") and err.count("\n") == 1, err
    assert sorted(here.parent.rglob("*")) == before


@pytest.mark.parametrize("damage", ["cut", "flipped", "no zip", "empty", "missing"])
def test_a_damaged_archive_is_one_sentence(
    here: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    path = archive({})
    content = path.read_bytes()
    start = content.index(b"model.pt") + 400
    damaged = {
        "cut": content[: len(content) // 2],
        "flipped": content.replace(content[start:][:64], bytes(64)),
        "no zip": b"weights",
        "empty": b"",
    }  # fmt: skip
    path.write_bytes(damaged[damage]) if damage in damaged else path.unlink()

    assert main(["add", "net.mar", "--input", "x:3x8x8"]) == 1

    err = capsys.readouterr().err
    assert err.startswith("ferry: net.mar: ") and err.count("\n") == 1, err
    assert not (here / "models").exists()


def test_an_archive_is_added_by_itself(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive({})

    assert main(["add", "net.mar", "model.pt", "--input", "x:3x8x8"]) == 1

    assert "add it by itself" in capsys.readouterr().err
    assert not (here / "models").exists()
