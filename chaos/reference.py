"""The models' right answers, from the model files themselves and without Ferry."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chaos.questions import Computed, Prepared, Wide
from shared.datatypes import Array

PREPARED_COUNT = 256
SEED = 20
POISON = 1e9
MORTAL = """
import torch


class Model:
    def load(self, context):
        self.model = torch.jit.load(context.directory / "model.pt").eval()
        self.input, self.output = context.inputs[0].name, context.outputs[0].name
        self.is_dead = False

    def device_fault(self):
        return "a stand-in for a GPU after an assertion in a kernel" if self.is_dead else ""

    def forward(self, inputs):
        rows = inputs[self.input]
        self.is_dead = self.is_dead or bool((rows == {poison}).any())
        if self.is_dead:
            raise RuntimeError("the device is dead")
        return {{self.output: self.model(torch.from_numpy(rows))}}
"""
"""A model whose device dies for good on one value, as a GPU's context does."""


WIDE = """
class Model:
    def load(self, context):
        self.input, self.output = context.inputs[0].name, context.outputs[0].name

    def forward(self, inputs):
        row = inputs[self.input]
        return {self.output: row[:, : int(row[0, 0])][:, ::-1].copy()}
"""
WIDE_NAME = "wide"
WIDE_LENGTH = 20_000
"""Numbers of a row, 80 KB: it lies beside Redis."""
WIDE_CONFIG = """\
backend: "python"
input [ { name: "x" data_type: TYPE_FP32 dims: [1, -1] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [1, -1] } ]
"""


def tiny(directory: Path) -> Computed:
    """Return questions for `tiny` by its own weights."""
    state = _load(directory).state_dict()
    arrays: list[Array] = [
        state[name].numpy() for name in ("0.weight", "0.bias", "2.weight", "2.bias")
    ]
    return Computed("INPUT__0", *arrays)


def digits(directory: Path) -> Prepared:
    """Return random pictures for `digits`, each run through the model alone."""
    model = _load(directory)
    random = np.random.default_rng(SEED)
    inputs = random.normal(size=(PREPARED_COUNT, 1, 32, 32)).round(2).astype(np.float32)
    with torch.inference_mode():
        outputs = [model(torch.from_numpy(row[None])).numpy()[0] for row in inputs]
    return Prepared("image", inputs, np.stack(outputs))


def add_version(directory: Path, version: int) -> None:
    """Put a version of `tiny` beside the others, in one step; see `questions.answer_of`."""
    model = _load(directory)
    state = model.state_dict()
    for name in ("2.weight", "2.bias"):
        state[name].mul_(version)
    draft = directory / f".{version}.draft"
    draft.mkdir()
    with _torchscript():
        torch.jit.save(model, str(draft / "model.pt"))
    draft.rename(directory / str(version))


def make_mortal(models: Path, name: str, directory: Path) -> Path:
    """Return a repository with a model that answers as `name` does, on a device that may die."""
    original, copy = (models / name).resolve(), directory / "mortal" / name
    (copy / "1").mkdir(parents=True)
    (copy / "1" / "model.pt").symlink_to(original / "1" / "model.pt")
    (copy / "1" / "model.py").write_text(MORTAL.format(poison=POISON))
    config = (original / "config.pbtxt").read_text()
    (copy / "config.pbtxt").write_text(
        config.replace('platform: "pytorch_libtorch"', 'backend: "python"')
    )
    return copy.parent


def make_wide(directory: Path) -> Path:
    """Return a repository with `wide`, which answers as `questions.Wide` says."""
    model = directory / "wide" / "wide"
    (model / "1").mkdir(parents=True)
    (model / "1" / "model.py").write_text(WIDE)
    (model / "config.pbtxt").write_text(WIDE_CONFIG)
    return model.parent


def _load(directory: Path) -> Any:
    load: Any = torch.jit.load
    with _torchscript():
        return load(str(directory / "1" / "model.pt"), map_location="cpu").eval()


@contextmanager
def _torchscript() -> Iterator[None]:
    """Use TorchScript without torch's advice to use another format."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


REFERENCES: dict[str, Callable[[Path], Computed | Prepared | Wide]] = {
    "tiny": tiny,
    "digits": digits,
    "wide": lambda _: Wide("x", WIDE_LENGTH, large=True),
    "wide-small": lambda _: Wide("x", WIDE_LENGTH, large=False),
}
