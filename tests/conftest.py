"""What all tests share: one real Valkey, the sample models, a real worker, a real API."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex
from typing import Any

import acl_user
import lanes
import older_redis
import pytest
from ferry_processes import ROOT, SAMPLES, running_worker
from flask import Flask
from flask.testing import FlaskClient
from forks import FORKS
from two_ends import TwoEnds

from api.app import create_app
from ferry.commands.samples import make_samples
from ferry.up.embedded_valkey import running
from shared.settings import Settings

# Tests ask servers on this machine, and most clients would ask a proxy for them.
for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
    del os.environ[name]
# Answers and placement are the CPU's on a machine with GPUs too; tests/gpu takes this back.
os.environ["FERRY_GPUS"] = "none"
# Many workers run side by side, and one could have it.
os.environ["FERRY_METRICS_PORT"] = "0"


@pytest.fixture(scope="session", autouse=True)
def server() -> Iterator[None]:
    """Start another server than the embedded Valkey in this run, if one is named."""
    with pytest.MonkeyPatch.context() as patch:
        older_redis.embed(patch)
        yield


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a private Valkey server that lives as long as the test run."""
    with running(tmp_path_factory.mktemp("valkey")) as server:
        yield acl_user.url_for(server.url)
    # The couriers of all tests are daemons: behind the last line they would say that it is gone.
    logging.getLogger("shared").setLevel(logging.CRITICAL)


@pytest.fixture
def settings(redis_url: str) -> Settings:
    """Settings of one test: its own key prefix, so that no test sees another's keys."""
    return Settings(redis_url=redis_url, key_prefix=f"test-{token_hex(4)}")


@pytest.fixture(scope="session")
def sample_models() -> Path:
    """The repository with the sample models, made once and kept in models/."""
    make_samples(SAMPLES, ROOT / "models", force=False, weights=None)
    return ROOT / "models"


@pytest.fixture(scope="session")
def served(redis_url: str, sample_models: Path) -> Iterator[Settings]:
    """Settings under which a real worker serves all sample models, for the whole run."""
    settings = Settings(
        redis_url=redis_url,
        key_prefix="served",
        models=str(sample_models),
        request_timeout_seconds=20.0,
    )
    with running_worker(settings):
        yield settings


@pytest.fixture(scope="session")
def app(served: Settings) -> Flask:
    """The API over the session's worker."""
    return create_app(served)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """A client of the API; requests go through Redis to the real worker."""
    return app.test_client()


@pytest.fixture
def ends(settings: Settings) -> Iterator[TwoEnds]:
    """Both ends of a queue of the test's own."""
    ends = TwoEnds(settings)
    yield ends
    ends.close()


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have our code run the worker's commands as forks, where how they start is not the subject."""
    monkeypatch.setattr(subprocess, "run", FORKS.run)


def pytest_report_header() -> str:
    return older_redis.version()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    lanes.sort(items)
    lanes.mark_quick(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    return lanes.scheduler(config, log)
