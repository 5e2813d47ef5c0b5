"""What is asked of which model: one body per scenario, sent again and again."""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SENTENCE = "The soup was cold, but the waiter was kind and brought us a new one at once."


@dataclass(frozen=True)
class Scenario:
    """One model under one kind of request.

    `extra_clients` are measured besides the usual counts. `slowness` stretches each measurement:
    wrk drops what is in flight at the end, so a run must be long against one batch.
    """

    model: str
    path: str
    content_type: str
    body: Callable[[], bytes]
    pictures: bool = False
    against_constant: bool = False
    extra_clients: tuple[int, ...] = ()
    slowness: int = 1


def tiny_body() -> bytes:
    """Return 16 floats in the Open Inference Protocol's JSON."""
    data = np.random.default_rng(0).normal(size=16).round(4).tolist()
    tensor = {"name": "INPUT__0", "datatype": "FP32", "shape": [1, 16], "data": data}
    return json.dumps({"inputs": [tensor]}).encode()


def digits_body() -> bytes:
    """Return one of scikit-learn's digits as a PNG of 64 x 64 pixels."""
    import sklearn.datasets  # noqa: PLC0415  takes a second, and no other scenario needs it

    ink = sklearn.datasets.load_digits().images[7]
    picture = Image.fromarray(np.rint(ink * (255 / 16)).astype(np.uint8))
    buffer = io.BytesIO()
    picture.resize((64, 64), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def sentiment_body() -> bytes:
    """Return one sentence for `/predict`."""
    return json.dumps({"text": SENTENCE}).encode()


def photo_body() -> bytes:
    """Return scikit-learn's photo of a temple as it is on disk: a JPEG of 640 x 427 pixels."""
    package = importlib.util.find_spec("sklearn")
    assert package is not None and package.origin is not None, "scikit-learn is installed"
    return (Path(package.origin).parent / "datasets" / "images" / "china.jpg").read_bytes()


JSON = "application/json"
SCENARIOS = {
    scenario.model: scenario
    for scenario in (
        Scenario("tiny", "/v2/models/tiny/infer", JSON, tiny_body, against_constant=True),
        Scenario("digits", "/predict/digits", "image/png", digits_body, pictures=True),
        Scenario("sentiment", "/predict/sentiment", JSON, sentiment_body, slowness=2),
        Scenario(
            "resnet18", "/predict/resnet18", "image/jpeg", photo_body,
            pictures=True, extra_clients=(32,), slowness=4,
        ),
    )
}  # fmt: skip
