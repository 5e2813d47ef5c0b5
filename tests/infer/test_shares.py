"""Requests to one slow model never shut another: each has a share of what may wait."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from registered import register, spec

from api.infer.options import RequestOptions
from api.infer.question import Question
from api.services import Services
from shared.errors import BadRequest, QueueFull
from shared.messages import Tensor
from shared.model_spec import ModelSpec, TensorSpec
from shared.settings import Settings

PLACES = 20
X = TensorSpec(name="x", datatype="FP32", dims=(1,))
SLOW, QUICK = spec("slow", X), spec("quick", X)
LEVELS = spec("levels", X).with_changes(priority_levels=2, default_priority_level=2)


@pytest.fixture
def ours(settings: Settings) -> Settings:
    return replace(settings, max_waiting=PLACES, key_prefix=f"{settings.key_prefix}-shares")


@pytest.fixture
def services(ours: Settings) -> Iterator[Services]:
    register(ours, SLOW, QUICK)
    yield Services.of(ours)


def ask(services: Services, model: ModelSpec, **options: float) -> None:
    inputs = (Tensor.of("x", np.zeros((1, 1), np.float32)),)
    services.queues.push(Question(model, inputs, options=RequestOptions(**options)))  # type: ignore[arg-type]


def fill(services: Services, model: ModelSpec, **options: float) -> int:
    """Ask until it is refused; return how often it was not."""
    for count in range(PLACES + 1):
        try:
            ask(services, model, **options)
        except QueueFull:
            return count
    raise AssertionError("never full")


def test_a_model_that_nobody_answers_leaves_places_to_others(services: Services) -> None:
    assert fill(services, SLOW) == PLACES * 4 // 5 + 1

    assert fill(services, QUICK) > 0


def test_a_lone_model_has_all_places(ours: Settings) -> None:
    register(ours, SLOW)
    services = Services.of(ours)
    services.catalog.snapshot()

    assert fill(services, SLOW) == PLACES


def test_a_level_leaves_places_to_the_other(ours: Settings) -> None:
    register(ours, LEVELS)
    services = Services.of(ours)

    assert fill(services, LEVELS, priority=2) == PLACES * 4 // 5 + 1
    assert fill(services, LEVELS, priority=1) > 0


@pytest.mark.parametrize("option", ["timeout_seconds", "queue_timeout_seconds"])
def test_no_client_may_ask_for_more_time_than_the_setting_says(
    services: Services, option: str
) -> None:
    ask(services, QUICK, **{option: 600.0})
    with pytest.raises(BadRequest, match=r"may wait 600 s at most, not 600\.5"):
        ask(services, QUICK, **{option: 600.5})
