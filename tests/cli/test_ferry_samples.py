"""`ferry samples` makes what is missing, once, and loads no torch to find out."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ferry.cli import main
from ferry.commands.samples import DEFAULT_NAMES


class Maker:
    """Stands in for samples.<name>: writes a model file, or dies half-way."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, object]]] = []
        self.dies = False
        self.lacking = ""

    def make(self, directory: Path, **options: object) -> None:
        if directory.name == self.lacking:
            raise ModuleNotFoundError("the package weights-of-it is not installed")
        self.calls.append((directory.name, options))
        logging.getLogger("exporter").error("noise")
        subprocess.run(["echo", "noise"], check=True)
        (directory / "1").mkdir(parents=True, exist_ok=True)
        (directory / "1" / "model.pt").touch()
        if self.dies:
            raise KeyboardInterrupt


@pytest.fixture
def maker(monkeypatch, tmp_path) -> Maker:
    maker = Maker()
    for name in ("digits", "sentiment", "sentences", "photos", "resnet", "tiny"):
        monkeypatch.setitem(sys.modules, f"samples.{name}", SimpleNamespace(make=maker.make))
    monkeypatch.setenv("FERRY_MODELS", str(tmp_path / "models"))
    return maker


def test_without_names_one_model_of_each_kind_and_a_larger_one_are_made(maker, capsys):
    assert main(["samples"]) == 0

    assert [name for name, _ in maker.calls] == list(DEFAULT_NAMES)
    assert "digits: made in " in capsys.readouterr().out


def test_exporters_say_nothing_of_their_own(maker, capfd):
    main(["samples", "tiny"])

    said = capfd.readouterr()
    assert [line.partition(" in ")[0] for line in said.out.splitlines()] == [
        f"tiny: making {os.environ['FERRY_MODELS']}/tiny",
        "tiny: made",
    ]
    assert not said.err


def test_what_is_there_is_left_alone_unless_forced(maker, capsys):
    main(["samples", "tiny"])
    main(["samples", "tiny"])
    assert len(maker.calls) == 1
    assert "is there already" in capsys.readouterr().out

    main(["samples", "tiny", "--force"])
    assert len(maker.calls) == 2


def test_a_model_whose_making_was_cut_short_is_made_again(maker):
    maker.dies = True
    assert main(["samples", "tiny"]) == 130
    maker.dies = False

    assert main(["samples", "tiny"]) == 0

    assert len(maker.calls) == 2


def test_one_whose_package_is_not_there_is_left_out_and_the_others_are_made(
    maker, tmp_path, capsys
):
    maker.lacking = "photos"

    assert main(["samples"]) == 0
    sentence = "photos is left out: the package weights-of-it is not installed\n"
    assert sentence in capsys.readouterr().out
    assert {name for name, _ in maker.calls} == set(DEFAULT_NAMES) - {"photos"}
    assert not (tmp_path / "models" / "photos").exists()

    assert main(["samples", "photos", "resnet50"]) == 1
    assert capsys.readouterr().err.endswith(sentence)
    assert maker.calls[-1][0] == "resnet50"


def test_a_resnet_gets_its_depth_and_weights(maker):
    main(["samples", "resnet50", "--weights", "some.pt"])

    assert maker.calls == [("resnet50", {"depth": 50, "weights": Path("some.pt")})]


def test_an_unknown_name_is_refused_with_the_known_ones(maker, capsys):
    assert main(["samples", "digits", "alexnet"]) == 2

    assert "no sample alexnet; there are digits, sentiment" in capsys.readouterr().err
    assert maker.calls == []


def test_the_command_line_loads_neither_torch_nor_flask():
    code = "import sys, ferry.cli; sys.exit(bool({'torch', 'flask', 'numpy'} & set(sys.modules)))"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
