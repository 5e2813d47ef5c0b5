"""Lets this folder's workers have GPUs, which all other tests do without."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def gpus() -> Iterator[None]:
    """Take back what `tests/conftest.py` set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("FERRY_GPUS", raising=False)
        yield
