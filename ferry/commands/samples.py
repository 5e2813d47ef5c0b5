"""`ferry samples`: makes the sample models, each by its own script under samples/."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

# What is made when no name is given: one model for each kind of input, and one larger. A second one
# for texts, as sentiment_ensemble is, would leave POST /predict with no model to choose.
DEFAULT_NAMES = ("digits", "sentiment", "resnet18", "tiny")
ENSEMBLES = ("sentiment_ensemble", "digit_reader")
NAMES = ("digits", "sentiment", "resnet18", "resnet50", "tiny", *ENSEMBLES)
# Stands in a model's directory for as long as the model is being made.
UNFINISHED = ".unfinished"


def make_samples(
    names: Sequence[str], repository: Path, force: bool = False, weights: Path | None = None
) -> None:
    """Make the named models in `repository`; a finished one is left alone unless `force`.

    `weights` is a torchvision-style state dict for the resnets; ValueError says what does not fit.
    """
    for name in names or DEFAULT_NAMES:
        directory = repository / name
        if is_finished(directory) and not force:
            print(f"{name}: {directory} is there already", flush=True)
            continue
        print(f"{name}: making {directory}", flush=True)
        start = time.monotonic()
        directory.mkdir(parents=True, exist_ok=True)
        (directory / UNFINISHED).touch()
        _maker(name, weights)(directory)
        (directory / UNFINISHED).unlink()
        print(f"{name}: made in {time.monotonic() - start:.1f} s", flush=True)


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
