"""The fuzzers run for a few thousand inputs each; see `fuzz_parsers.py` for longer runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("fuzz_parsers.py")
RUNS = 3000


def fuzz(parser: str, directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), parser, "-seed=1", *options],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("parser", ["v2", "frame", "v1", "form"])
def test_thousands_of_inputs_find_nothing(parser: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris is not installed: pip install -e .[fuzz]")

    ended = fuzz(parser, tmp_path, f"-runs={RUNS}")

    assert ended.returncode == 0, ended.stdout[-4000:]
    assert f"Done {RUNS}" in ended.stdout
    assert not list(tmp_path.iterdir())
