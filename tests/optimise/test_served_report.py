"""GET /models/<name>/report: the page beside the version, which can run and fetch nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from flask.testing import FlaskClient
from registered import register

from api.app import create_app
from shared.model_spec import ModelSpec, TensorSpec
from shared.registry.registry import Registry
from shared.settings import Settings
from shared.wire.client import connect
from worker.repository.models import LARGEST_PAGE, read_model

PAGE = b"<!doctype html><title>fast</title>"


@pytest.fixture(scope="module")
def settings(redis_url: str) -> Settings:
    return Settings(redis_url=redis_url, key_prefix="reports")


@pytest.fixture(scope="module")
def client(settings: Settings) -> FlaskClient:
    x = TensorSpec(name="x", datatype="FP32", dims=(2,))
    for name in ("fast", "plain"):
        register(
            settings,
            ModelSpec(
                name=name, version="1", platform="", max_batch_size=1, inputs=(x,), outputs=(x,)
            ),
        )
    Registry(connect(settings.redis_url), settings.key_prefix).keep_page("fast/1", PAGE)
    return create_app(settings).test_client()


@pytest.mark.parametrize("path", ["/models/fast/report", "/models/fast/versions/1/report"])
def test_a_version_with_a_report_shows_it(client: FlaskClient, path: str) -> None:
    response = client.get(path)

    assert response.status_code == 200
    assert response.data == PAGE
    assert response.mimetype == "text/html"
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/models/plain/report", "'plain' version 1 has no report: ferry optimise makes it"),
        ("/models/nobody/report", "unknown model"),
    ],
)
def test_without_a_report_there_is_a_sentence(client: FlaskClient, path: str, said: str) -> None:
    response = client.get(path)

    assert response.status_code == 404
    assert said in response.get_json()["error"]


def test_a_version_that_is_gone_leaves_no_page(settings: Settings) -> None:
    registry = Registry(connect(settings.redis_url), settings.key_prefix)
    registry.keep_page("gone/1", PAGE)

    registry.remove_model("gone/1")

    assert registry.page("gone/1") is None


def test_the_page_is_read_beside_the_model_unless_it_is_huge(
    tmp_path: Path, sample_models: Path
) -> None:
    served = replace(read_model(sample_models, "digits", "1"), file=tmp_path / "model.pt")
    assert served.report() is None

    (tmp_path / "report.html").write_bytes(PAGE)
    assert served.report() == PAGE
    (tmp_path / "report.html").write_bytes(b"x" * (LARGEST_PAGE + 1))
    assert served.report() is None
