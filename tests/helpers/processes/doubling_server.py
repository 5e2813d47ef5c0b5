"""A real server with a model of the test's process that doubles rows of 2000 numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from secrets import token_hex
from typing import Any, NamedTuple

from counting_model import counting_model
from ferry_processes import free_port, running_gunicorn
from worker_processes import descendants

from shared.model_spec import TensorSpec
from shared.settings import Settings

WIDTH = 2000
ROW = [0.5 + index for index in range(WIDTH)]
DOUBLED = [2 * value for value in ROW]
INFER, PREDICT, V1 = "/v2/models/fake/infer", "/predict/fake", "/v1/models/fake:predict"
_TENSOR = {"name": "x", "shape": [1, WIDTH], "datatype": "FP32", "data": ROW}
BODIES: dict[str, dict[str, Any]] = {
    INFER: {"inputs": [_TENSOR]},
    PREDICT: {"input_tensor": [ROW]},
    V1: {"instances": [ROW]},
}
"""What asks for one row, by route."""


class Server(NamedTuple):
    """Where it listens, and the process that serves."""

    port: int
    pid: int


@contextmanager
def doubling_server(redis_url: str, max_body_bytes: int) -> Iterator[Server]:
    """Serve `fake` over HTTP, one process, until the block ends."""
    settings = Settings(
        redis_url=redis_url,
        key_prefix=f"doubling-{token_hex(4)}",
        port=free_port(),
        api_processes=1,
        max_body_bytes=max_body_bytes,
    )
    tensors = {
        side: (TensorSpec(name=name, datatype="FP32", dims=(WIDTH,)),)
        for side, name in (("inputs", "x"), ("outputs", "y"))
    }
    with (
        counting_model(settings, max_batch_size=8, **tensors),
        running_gunicorn(settings) as gunicorn,
    ):
        (worker,) = descendants(gunicorn.pid)
        yield Server(settings.port, worker)


def numbers(body: dict[str, Any]) -> list[float]:
    """Return the model's first row, from whichever route the answer came."""
    found = body.get("outputs") or body.get("prediction") or body["predictions"]
    values: list[float] = found[0]["data"] if isinstance(found[0], dict) else found[0]
    return values
