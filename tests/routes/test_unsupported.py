"""What Ferry does not offer of the v2 protocol is answered with 501, whatever is asked of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from answers import answer, refusal
from flask.testing import FlaskClient
from triton_http import refused, triton_client

from api.app import create_app
from shared.settings import Settings

SHARED_MEMORY = "shared memory is not supported"
NOT_OFFERED = {"system_shared_memory", "cuda_shared_memory"}


@pytest.fixture(scope="module")
def triton(redis_url: str) -> Iterator[Any]:
    """Triton's client of an API that no worker stands behind."""
    with triton_client(Settings(redis_url=redis_url, key_prefix="unsupported")) as client:
        yield client


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("get_system_shared_memory_status", (), SHARED_MEMORY),
        ("get_system_shared_memory_status", ("a region",), SHARED_MEMORY),
        ("register_system_shared_memory", ("region", "/key", 64), SHARED_MEMORY),
        ("unregister_system_shared_memory", (), SHARED_MEMORY),
        ("unregister_system_shared_memory", ("a/region",), SHARED_MEMORY),
        ("get_cuda_shared_memory_status", (), SHARED_MEMORY),
        ("get_cuda_shared_memory_status", ("region",), SHARED_MEMORY),
        ("register_cuda_shared_memory", ("region", "aGFuZGxl", 0, 64), SHARED_MEMORY),
        ("unregister_cuda_shared_memory", (), SHARED_MEMORY),
        ("unregister_cuda_shared_memory", ("region",), SHARED_MEMORY),
    ],
)
def test_tritons_client_is_told_that_it_is_not_supported(
    triton: Any, method: str, arguments: tuple[Any, ...], message: str
) -> None:
    assert message in refused(getattr(triton, method), *arguments)[1]
    assert refused(getattr(triton, method), *arguments)[0] == "501"


@pytest.fixture
def client(settings: Settings) -> FlaskClient:
    return create_app(settings).test_client()


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "path",
    [
        "/v2/systemsharedmemory/status",
        "/v2/cudasharedmemory/region/x/register",
    ],
)
def test_the_refusal_has_the_shape_of_every_error(
    client: FlaskClient, method: str, path: str
) -> None:
    refusal(client.open(path, method=method, data=b"{not read"), 501, "unsupported")


def test_what_is_not_offered_is_not_among_the_extensions(client: FlaskClient) -> None:
    assert not NOT_OFFERED & set(answer(client.get("/v2"))["extensions"])


def test_the_extensions_named_are_offered(client: FlaskClient) -> None:
    extensions = answer(client.get("/v2"))["extensions"]

    assert {"model_repository", "model_configuration", "logging", "statistics"} <= set(extensions)
    assert len(extensions) == len(set(extensions))
