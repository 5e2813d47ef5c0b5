"""What the tests in the browser share: one system with many kinds of models, one browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import chromium, running_browser
from echo_models import VALUES, Identity, add_echo, config, tensors
from ensemble_models import Twice, add_ensemble, add_small, x_to_y
from ferry_processes import ROOT, free_port, running_gunicorn, running_worker
from stand_ins import torchscript

from shared.settings import Settings

SHOWN_SAMPLES = ["digits", "sentiment", "tiny"]
"""A picture to draw, a text, and numbers: what most people serve."""


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    with running_browser() as running:
        yield running


def write_models(repository: Path, samples: Path) -> None:
    for name in SHOWN_SAMPLES:
        shutil.copytree(samples / name, repository / name)
    numbers = [each for each in VALUES if each != "BYTES"]
    add_all(repository, "datatypes", Eleven(), numbers)
    add_all(repository, "halves", Pair(), ["FP16", "BF16"])
    add_echo(repository, "BYTES")
    add_echo(repository, "FP32", name="vectors", dims="[300]")
    add_echo(repository, "UINT8", name="large", dims="[3, 64, 64]")
    whole = [tensors(kind, ("x", "INT64", "[-1, 2]")) for kind in ("input", "output")]
    torchscript(repository, "unbatched", Identity(), config(0, *whole))
    add_small(repository, "twice", Twice())
    add_ensemble(repository, "ensemble", [x_to_y("twice", "in", "z"), x_to_y("twice", "z", "out")])


class Pair(torch.nn.Module):
    """Returns both tensors."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return a, b


class Eleven(torch.nn.Module):
    """Returns eleven tensors, one of each datatype that JSON carries as numbers."""

    def forward(self, a, b, c, d, e, f, g, h, i, j, k):  # noqa: PLR0913, PLR0917 - no *args there
        return a, b, c, d, e, f, g, h, i, j, k


def add_all(repository: Path, name: str, module: torch.nn.Module, datatypes: list[str]) -> None:
    """Serve a model with one input of each datatype, and the same as outputs."""
    letters = "abcdefghijk"[: len(datatypes)]
    inputs = [(letter, kind, "[2, 3]") for letter, kind in zip(letters, datatypes, strict=True)]
    outputs = [(f"y__{n}", kind, "[2, 3]") for n, kind in enumerate(datatypes)]
    torchscript(
        repository, name, module, config(8, tensors("input", *inputs), tensors("output", *outputs))
    )


@pytest.fixture(scope="session")
def system(
    redis_url: str, sample_models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Settings]:
    """Settings of a running system with the samples, and models of each kind of tensor."""
    chromium()  # first: without one nothing need be started
    models = tmp_path_factory.mktemp("models")
    write_models(models, sample_models)
    settings = Settings(
        redis_url=redis_url,
        key_prefix="browser",
        models=str(models),
        port=free_port(),
        model_control_mode="explicit",
        load_models="*",
        api_processes=2,
        heartbeat_seconds=1.0,
    )
    with running_worker(settings), running_gunicorn(settings):
        yield settings


@pytest.fixture(scope="session")
def address(system: Settings) -> str:
    return f"http://127.0.0.1:{system.port}"


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT
