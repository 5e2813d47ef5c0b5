"""What fails in a whole run is run once more, alone, but for what might have lost a request."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from ferry_processes import ROOT

ONCE = """
from pathlib import Path


def test_of_{name}():
    is_first = not Path("{name}").exists()
    Path("{name}").touch()
    assert not {condition}
"""


def both_runs(place: Path, **conditions: str) -> subprocess.CompletedProcess[str]:
    for name, condition in conditions.items():
        text = ONCE.format(name=name, condition=condition)
        (place / f"test_{name}.py").write_text(text)
    (place / "pytest.ini").write_text("[pytest]\n")
    first = subprocess.run(
        [sys.executable, "-m", "pytest", "--cache-clear"], cwd=place, check=False
    )
    assert first.returncode == 1
    program = ROOT / "tools" / "second_run.py"
    return subprocess.run(
        [sys.executable, program, "1"], cwd=place, capture_output=True, text=True, check=False
    )


def test_what_failed_beside_others_is_asked_again_and_named(tmp_path: Path) -> None:
    ran = both_runs(tmp_path, hasty="is_first", good="False")

    assert ran.returncode == 0
    assert "1 failed beside others" in ran.stdout
    assert "test_of_hasty" in ran.stdout
    assert "test_of_good" not in ran.stdout


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        ({"bad": "True", "hasty": "is_first"}, ""),
        ({"crashes": "is_first"}, "test_crashes.py::test_of_crashes is asked once only"),
        ({f"hasty_{number}": "is_first" for number in range(11)}, "11 failed"),
    ],
)
def test_what_fails_alone_or_loses_requests_or_is_many_has_failed(
    tmp_path: Path, conditions: dict[str, str], said: str
) -> None:
    ran = both_runs(tmp_path, **conditions)

    assert ran.returncode == 1
    assert said in ran.stderr


@pytest.mark.parametrize("code", [2, 4, 124])
def test_a_run_that_did_not_end_is_none(tmp_path: Path, code: int) -> None:
    program = ROOT / "tools" / "second_run.py"
    ran = subprocess.run([sys.executable, program, str(code)], cwd=tmp_path, check=False)

    assert ran.returncode == code
