"""Drift through real processes: verified, served, asked something else, and told."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from echo_models import add_arithmetic
from ferry_processes import running_worker
from flask.testing import FlaskClient
from waiting import wait_until

from api.app import create_app
from ferry.cli import main
from shared.drift.counts import Counted, DriftCounts
from shared.drift.findings import findings
from shared.drift.reference import Reference, reference_of
from shared.registry.registry import Registry
from shared.settings import Settings
from shared.wire.client import connect

RANDOM = np.random.default_rng(3)
REQUESTS, OTHERS, ROWS_EACH = 75, 110, 4


class Seen:
    """What Redis says of the model."""

    def __init__(self, settings: Settings) -> None:
        client = connect(settings.redis_url)
        raw = Registry(client, settings.key_prefix).references()["arithmetic/1"]
        reference = reference_of(raw)
        assert reference is not None
        self.reference: Reference = reference
        self._counts = DriftCounts(client, settings.key_prefix)

    def counted(self) -> Counted:
        return self._counts.latest([("arithmetic/1", self.reference)])[0]

    def rows(self) -> int:
        return int(self.counted()["mean of a"].sum())

    def drifting(self) -> set[str]:
        return {each.signal for each in findings(self.reference, self.counted()) if each.drifts}


@pytest.fixture(scope="module")
def served(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    models = tmp_path_factory.mktemp("drift") / "models"
    add_arithmetic(models)
    a, b = RANDOM.normal(size=(2, 500, 2, 3)).astype(np.float32)
    np.savez(models.parent / "rows.npz", a=a, b=b)
    data = ["--data", str(models.parent / "rows.npz"), "--only-reference"]
    assert main(["verify", "arithmetic", "--models", str(models), *data]) == 0
    yield Settings(redis_url=redis_url, key_prefix="drift", models=str(models))


def ask(client: FlaskClient, offset: float) -> None:
    rows = RANDOM.normal(size=(2, ROWS_EACH, 2, 3)) + np.array([offset, 0.0]).reshape(2, 1, 1, 1)
    inputs = [
        {
            "name": name,
            "shape": [ROWS_EACH, 2, 3],
            "datatype": "FP32",
            "data": each.ravel().tolist(),
        }
        for name, each in zip("ab", rows, strict=True)
    ]
    answer = client.post("/v2/models/arithmetic/infer", json={"inputs": inputs})
    assert answer.status_code == 200


def test_rows_like_the_references_are_steady_and_others_drift(served: Settings) -> None:
    client = create_app(served).test_client()
    with running_worker(served):
        seen = Seen(served)
        for _ in range(REQUESTS):
            ask(client, 0.0)
        wait_until(lambda: seen.rows() >= REQUESTS * ROWS_EACH, 10, "rows are counted")
        assert not seen.drifting()
        for _ in range(OTHERS):  # no more than are looked at in a second
            ask(client, 3.0)

    # An orderly end has counted all; the latest 500 and few more are read.
    assert seen.rows() >= 500
    assert {"mean of a", "output"} <= seen.drifting()
    assert not {"mean of b", "spread of b"} & seen.drifting()
    hours = seen._counts.hours("arithmetic/1", seen.reference, 2)
    assert hours["mean of a"].sum() == (REQUESTS + OTHERS) * ROWS_EACH
