"""The lanes of the tests: the files that they name."""

from __future__ import annotations

from pathlib import Path

import lanes
import pytest

ROOT = Path(__file__).resolve().parents[2]


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
