"""The lanes of the tests: the files that they name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import lanes
import pytest

ROOT = Path(__file__).resolve().parents[2]
HELPERS = ROOT / "tests" / "helpers"
DYING = 25
DIES_ONCE = """
import os
from pathlib import Path


def test_one():
    if not Path("died").exists():
        Path("died").touch()
        os._exit(7)
"""
SLEEPS = "import time\n\ndef test_one():\n    time.sleep(0.02)\n"


@pytest.mark.parametrize("file", (*lanes.LONGEST, *lanes.SERVED))
def test_a_file_of_the_lanes_exists(file: str) -> None:
    assert (ROOT / file).is_file()


def test_tests_over_the_session_s_worker_are_in_its_lane(request: pytest.FixtureRequest) -> None:
    found = {
        item.id.path
        for item in request.session.items
        if {"served", "sample_models"} <= set(item.fixturenames)
    }

    assert found <= set(lanes.SERVED)


def test_a_run_in_which_a_test_process_dies_comes_to_its_end(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"test_{number:02}.py").write_text(DIES_ONCE if number == DYING else SLEEPS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "conftest.py").write_text(
        f"import sys\nsys.path.insert(0, {str(HELPERS)!r})\nimport lanes\n\n"
        "def pytest_xdist_make_scheduler(config, log):\n    return lanes.scheduler(config, log)\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile"]

    ran = subprocess.run(
        [*command, "--no-loadscope-reorder"], cwd=tmp_path, capture_output=True, timeout=120,
        check=False,
    )  # fmt: skip

    assert ran.returncode == 1
    assert b"1 failed, 30 passed" in ran.stdout
