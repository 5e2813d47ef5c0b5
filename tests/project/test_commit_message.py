"""A commit's subject is short, of one thing, and finished: `tools/commit-msg` refuses others."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

HOOK = Path(__file__).resolve().parents[2] / "tools" / "commit-msg"


def refusal(message: str, directory: Path) -> str:
    """Return what the hook says of a message, empty when it takes it."""
    file = directory / "message"
    file.write_text(message, encoding="utf-8")
    done = subprocess.run([HOOK, file], capture_output=True, text=True, check=False)
    assert bool(done.returncode) == bool(done.stderr)
    return done.stderr


@pytest.mark.parametrize(
    "subject",
    [
        "Split pictures and texts",
        "S" * 72,
        "Löse die Größe " + "ö" * 57,
        "Name a wipe of the cache",
        'Revert "A subject that was once allowed to be much longer than it may be today, and was"',
    ],
)
def test_a_plain_subject_is_taken(subject: str, tmp_path: Path) -> None:
    assert (
        refusal(f"{subject}\n\nA body may be as long as it likes; and have semicolons.\n", tmp_path)
        == ""
    )


@pytest.mark.parametrize(
    ("subject", "why"),
    [
        ("S" * 73, "longer than 72"),
        ("Split pictures; rename texts", "a semicolon"),
        ("Follow a desired state (work in progress)", "say what works"),
        ("WIP: rooms", "say what works"),
    ],
)
def test_a_long_joined_or_unfinished_subject_is_refused(
    subject: str, why: str, tmp_path: Path
) -> None:
    assert why in refusal(f"{subject}\n", tmp_path)
