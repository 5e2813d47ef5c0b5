"""`ferry serve`: one command from files to a service, and lines of curl that work when pasted."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from ferry_up_process import STOP_SECONDS, free_port, wait_until
from forks import FORKS
from formats_repository import add_format
from scripted_models import save_scripted

from ferry.cli import main
from ferry.up import up as starting
from ferry.up.examples import working_example
from ferry.up.up import PROJECT_ROOT

READY_SECONDS = 120.0


class Halves(torch.nn.Module):
    """Takes much more than a line holds, and gives what JSON does not carry."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).half()[:, :2]


class Channels(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


class Wide(torch.nn.Module):
    """Takes rows of at least 100 numbers."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x.unfold(1, 100, 50).mean(2) + y


ADDED = {
    "halves": (Halves(), ["--input", "x:3x64x64"]),
    "channels": (Channels(), ["--input", "image:3x8x8"]),
    "wide": (Wide(), ["--input", "x:-1", "--input", "y:1"]),
}


class Serving:
    """A `ferry serve` with models that were added before, and two files of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.output = directory / "output"
        self.port = str(free_port())
        names = ("FERRY_GRPC_PORT", "FERRY_DASHBOARD_PORT", "FERRY_METRICS_PORT")
        self.environ = {
            name: value for name, value in os.environ.items() if not name.startswith("FERRY_")
        }
        self.environ |= {"PYTHONPATH": str(PROJECT_ROOT), "REDIS_URL": ""}
        self.environ |= {name: str(free_port()) for name in names}
        command = [sys.executable, "-m", "ferry", "serve", "a/mine.onnx", "b/mine.onnx"]
        command += ["--name", "one", "--name", "two", "--port", self.port]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                command, cwd=directory, env=self.environ, stdout=output, stderr=subprocess.STDOUT
            )

    def text(self) -> str:
        return self.output.read_text()


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    directory = tmp_path_factory.mktemp("serving")
    for name in ("a", "b"):
        (directory / name).mkdir()
        add_format(directory / "formats", "onnx", name).rename(directory / name / "mine.onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        for name, (module, options) in ADDED.items():
            if name != "halves":  # which is asked in processes of its own, as all others would be
                patch.setattr(subprocess, "run", FORKS.run)
            save_scripted(module.eval(), directory / f"{name}.pt")
            assert main(["add", f"{name}.pt", *options]) == 0
    started = Serving(directory)
    try:
        wait_until(lambda: " ready in" in started.text(), READY_SECONDS, started.text)
        yield started
    finally:
        started.process.terminate()
        started.process.wait(STOP_SECONDS + 5)


def answer(line: str, directory: Path) -> bytes:
    """Paste a line into a shell; return what it shows, or the file that it writes."""
    shown = subprocess.run(
        ["bash", "-c", f"{line} --fail"],
        cwd=directory,
        stdout=subprocess.PIPE,
        timeout=60,
        check=True,
    ).stdout
    return shown or (directory / "answer.bin").read_bytes()


def test_it_prints_a_line_of_curl_for_each_file_that_works_when_pasted(serving: Serving) -> None:
    lines = re.findall(r"try +(curl .*)", serving.text())

    assert len(lines) == 2
    for name, line in zip(("one", "two"), sorted(lines), strict=True):
        assert line == (
            f"curl -s http://127.0.0.1:{serving.port}/predict/{name} "
            "-d '{\"input_tensor\": [[0.1, 0.2]]}'"
        )
        assert json.loads(answer(line, serving.directory))["prediction"] == [[0.2, 0.4]]


@pytest.mark.parametrize("name", ADDED)
def test_a_line_is_found_for_pictures_large_inputs_and_free_dimensions(
    serving: Serving, name: str
) -> None:
    line = working_example(f"http://127.0.0.1:{serving.port}", name)

    assert "curl -s http://127.0.0.1:" in line
    assert len(line) < 600
    assert answer(line, serving.directory)


def test_a_taken_port_is_said_before_anything_is_copied(serving: Serving) -> None:
    models = serving.directory / "models"
    before = sorted(models.rglob("*"))

    again = subprocess.run(
        [sys.executable, "-m", "ferry", "serve", "a/mine.onnx", "--name", "three"],
        cwd=serving.directory,
        env=serving.environ | {"FERRY_PORT": serving.port},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert again.returncode == 1
    assert f"FERRY_PORT={serving.port}: cannot listen on 127.0.0.1" in again.stderr
    assert sorted(models.rglob("*")) == before


@pytest.mark.usefixtures("forked")
def test_what_a_repository_holds_is_served_again_and_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served: list[tuple[str, list[str]]] = []
    file = add_format(tmp_path / "formats", "onnx")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FERRY_MODEL_CONTROL_MODE", "explicit")
    monkeypatch.setattr(starting, "check_free", lambda _: None)
    monkeypatch.setattr(
        starting,
        "up",
        lambda environ, shown: served.append((environ["FERRY_LOAD_MODELS"], shown)) or 0,
    )

    for _ in range(2):
        assert main(["serve", str(file), "--name", "mine", "--models", "here"]) == 0
    capsys.readouterr()
    assert main(["serve", str(file), "--name", "mine", "--models", "here", "--input", "x:3"]) == 1
    assert (
        "--input x:3:FP32, but it is x:2:FP32 in here/mine/config.pbtxt" in capsys.readouterr()[1]
    )
    file.write_bytes(file.read_bytes() + b"\x12\x01x")  # another producer's name
    assert main(["serve", str(file), "--name", "mine", "--models", "here"]) == 0

    assert served == [("mine", ["mine"])] * 3
    assert sorted(path.name for path in (tmp_path / "here" / "mine").iterdir()) == [
        "1", "2", "config.pbtxt",
    ]  # fmt: skip
