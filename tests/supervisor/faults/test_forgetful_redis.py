"""A Redis that loses everything between two looks of one round at what is desired."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from redis import Redis
from versioned_models import add_model

from shared.errors import BadModel
from shared.registry.desired_state import Desired, Serving
from shared.registry.desired_store import ControlState, DesiredStore
from shared.settings import Settings
from shared.wire.client import connect
from worker.repository.models import ServedModel
from worker.supervisor.deployment import Deployment
from worker.supervisor.rollout import Rollout


class ForgetfulStore(DesiredStore):
    """A store that calls `lose` before the `when`th read of a round, once."""

    def __init__(self, client: Redis, prefix: str, lose: Callable[[], object]) -> None:
        super().__init__(client, prefix)
        self.lose, self.when = lose, 0

    def read(self) -> ControlState:
        if self.when == 1:
            self.lose()
        self.when -= 1
        return super().read()


def no_place(model: ServedModel, others: list[ServedModel]) -> Deployment:
    raise BadModel(f"no place for {model.spec.name}")


def look(rollout: Rollout, times: int) -> None:
    for _ in range(times):
        rollout.look_now()
        rollout.look(rings=True)


@pytest.mark.parametrize("when", [1, 2, 3])
def test_what_an_operator_asked_for_outlives_a_loss_in_the_midst_of_a_round(
    settings: Settings, tmp_path: Path, when: int
) -> None:
    add_model(tmp_path, "m", 1)
    settings = replace(settings, models=str(tmp_path))
    prefix = settings.key_prefix
    with connect(settings.redis_url) as redis:
        store = ForgetfulStore(redis, prefix, lambda: redis.delete(*redis.keys(f"{prefix}:*")))
        rollout = Rollout("s", settings, store, no_place, lambda: True)
        store.change("m", lambda *_: Desired(use="1"))
        served = Serving(versions={"1": "m/1"}, default="1")
        assert store.serve("m", served, [], store.changes())
        look(rollout, 3)
        store.change("other", lambda *_: Desired(use="7"))  # there is something to follow
        store.when = when
        look(rollout, 1)
        assert store.when < 1, "nothing was lost"

        look(rollout, 3)

        state = store.read()
        assert state.desired["m"].use == "1"
        assert state.served["m"].default == "1"
