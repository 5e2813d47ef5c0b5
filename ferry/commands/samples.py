"""`ferry samples`: makes the sample models, each by its own script under samples/."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

# What is made when no name is given: one model for each kind of input, one for embeddings, and one
# larger. A second one that says what texts are, as sentiment_ensemble does, would leave POST
# /predict with no model to choose.
DEFAULT_NAMES = ("digits", "sentiment", "sentences", "photos", "resnet18", "tiny")
ENSEMBLES = ("sentiment_ensemble", "digit_reader")
NAMES = (*DEFAULT_NAMES, "resnet50", *ENSEMBLES)
# Stands in a model's directory for as long as the model is being made.
UNFINISHED = ".unfinished"


def make_samples(
    names: Sequence[str], repository: Path, force: bool = False, weights: Path | None = None
) -> None:
    """Make the named models in `repository`; a finished one is left alone unless `force`.

    `weights` is a torchvision-style state dict for the resnets; ValueError says what does not fit.
    One whose package is not installed is left out, and the others are made: ValueError behind them
    if it was asked for by name.
    """
    left_out = []
    for name in names or DEFAULT_NAMES:
        directory = repository / name
        if is_finished(directory) and not force:
            print(f"{name}: {directory} is there already", flush=True)
            continue
        print(f"{name}: making {directory}", flush=True)
        try:
            _make(directory, _maker(name, weights))
        except ModuleNotFoundError as error:
            left_out.append(f"{name} is left out: {error}")
            print(left_out[-1], flush=True)
    if names and left_out:
        raise ValueError("; ".join(left_out))


def _make(directory: Path, make: Callable[[Path], None]) -> None:
    start = time.monotonic()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / UNFINISHED).touch()
    try:
        # Imported only now: the names of samples are read where there is no worker.
        with importlib.import_module("worker.optimise.quiet").quiet():
            make(directory)
    except ModuleNotFoundError:
        # Nothing was written yet, and an empty directory would be a model without versions.
        (directory / UNFINISHED).unlink()
        with suppress(OSError):
            directory.rmdir()
        raise
    (directory / UNFINISHED).unlink()
    print(f"{directory.name}: made in {time.monotonic() - start:.1f} s", flush=True)


def is_finished(directory: Path) -> bool:
    """Tell whether a model file stands in version 1, and its making was not cut short.

    An ensemble has none: its configuration is enough.
    """
    made = any(directory.glob("1/model.*"))
    if directory.name in ENSEMBLES:
        made = (directory / "config.pbtxt").is_file() and (directory / "1").is_dir()
    return made and not (directory / UNFINISHED).exists()


def _maker(name: str, weights: Path | None) -> Callable[[Path], None]:
    # Imported only now: torch takes seconds, and a model that is there needs none.
    if name.startswith("resnet"):
        make = importlib.import_module("samples.resnet").make
        depth = int(name.removeprefix("resnet"))
        return lambda directory: make(directory, depth=depth, weights=weights)
    found: Callable[[Path], None] = importlib.import_module(f"samples.{name}").make
    return found
