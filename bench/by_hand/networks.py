"""The networks that are made fast, each with real rows: some to calibrate with, others to ask.

The rows to calibrate with are written for `ferry optimise` too, which splits them for itself.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from bench.processes import PROJECT_ROOT
from samples import digits, photos, resnet
from samples.digits.network import DigitNetwork
from samples.digits.pictures import resize, training_handwriting
from samples.packages import package_folder
from samples.sentiment.model_directory import pad
from samples.sentiment.sentences import FOLDER, encode_examples, read_held_out, read_sentences
from samples.sentiment.weights import load_tokenizer, load_trained_model
from shared.datatypes import Array

ROWS = 8
CALIBRATION_BATCHES, ASKED_BATCHES = 8, 8
DATA_BATCHES = 48
"""Of rows for `ferry optimise`."""
PHOTOGRAPHS = ("china", "flower")
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
Inputs = Mapping[str, Array]
WriteData = Callable[[Path], Path]


@dataclass(frozen=True)
class Network:
    """A network in eager mode and real batches of its inputs; `labels` are of those asked."""

    name: str
    module: nn.Module
    calibration: Sequence[Inputs]
    asked: Sequence[Inputs]
    labels: Array | None = None
    write_data: WriteData | None = None
    """Writes the rows of calibration as clients would send them, and returns the file."""


def _pictures(name: str, module: nn.Module, mean: Sequence[float], std: Sequence[float]) -> Network:
    """Return a network of pictures, with crops of scikit-learn's two photographs."""
    folder = package_folder("sklearn")
    photographs = [Image.open(folder / "datasets" / "images" / f"{n}.jpg") for n in PHOTOGRAPHS]
    chooser = np.random.default_rng(0)

    def crops(count: int) -> list[Array]:
        return [
            np.stack([_crop(photographs[n % 2], chooser) for n in range(ROWS)])
            for _ in range(count)
        ]

    def batch(crops: Array) -> Inputs:
        scaled = ((crops - np.asarray(mean)) / np.asarray(std)).astype(np.float32)
        return {"input": np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))}

    calibrating, asked = crops(CALIBRATION_BATCHES), crops(ASKED_BATCHES)
    more = crops(DATA_BATCHES)
    return Network(
        name, module, [*map(batch, calibrating)], [*map(batch, asked)],
        write_data=_array_writer("input", np.concatenate([*calibrating, *more])),
    )  # fmt: skip


def _array_writer(name: str, rows: Array, labels: Array | None = None) -> WriteData:
    def write(directory: Path) -> Path:
        file = directory / "rows.npz"
        arrays = {name: rows} | ({} if labels is None else {"label": labels})
        np.savez(file, **arrays)  # type: ignore[arg-type]
        return file

    return write


def _crop(photograph: Image.Image, chooser: np.random.Generator) -> Array:
    side = int(chooser.integers(200, min(photograph.size)))
    left, top = (int(chooser.integers(0, length - side + 1)) for length in photograph.size)
    crop = photograph.crop((left, top, left + side, top + side))
    return np.asarray(crop.resize((224, 224), Image.Resampling.BILINEAR), np.uint8)


def _sentiment() -> Network:
    tokenizer = load_tokenizer()

    def batches(pairs: Sequence[tuple[str, str]], count: int) -> tuple[list[Inputs], list[int]]:
        examples = encode_examples(tokenizer, pairs[: count * ROWS], max_length=128)
        found: list[Inputs] = []
        for start in range(0, len(examples) - ROWS + 1, ROWS):
            ids, mask = pad([each.token_ids for each in examples[start : start + ROWS]])
            found.append({"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        return found, [each.label for each in examples[: len(found) * ROWS]]

    training = read_sentences(FOLDER / "training_a.tsv")
    calibration, _ = batches(training, CALIBRATION_BATCHES)
    asked, labels = batches(read_held_out(), 1000)

    def write(directory: Path) -> Path:
        file = directory / "rows.csv"
        with file.open("w", encoding="utf-8", newline="") as stream:
            rows = csv.writer(stream)
            rows.writerow(["label", "text"])
            rows.writerows(training[: DATA_BATCHES * ROWS])
        return file

    return Network("sentiment", load_trained_model(), calibration, asked, np.array(labels), write)


def _digits() -> Network:
    def batches(pictures: Array, count: int) -> list[Inputs]:
        sized = np.stack([resize(each) for each in pictures[: count * ROWS]])
        ready = (sized[:, None].astype(np.float32) / 255 - 0.5) / 0.5
        return [
            {"image": each}
            for each in np.split(ready[: len(ready) // ROWS * ROWS], len(ready) // ROWS)
        ]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        file = PROJECT_ROOT / "models" / "digits" / "1" / "model.pt"
        trained = torch.jit.load(file)  # type: ignore[no-untyped-call]
    network = DigitNetwork()
    network.load_state_dict(trained.state_dict(), strict=False)  # traced with what it computes
    pictures, labels = digits.held_out()
    handwriting, written = training_handwriting()
    calibration = batches(handwriting, CALIBRATION_BATCHES)
    count = DATA_BATCHES * ROWS
    rows = np.stack([resize(each)[..., None] for each in handwriting[:count]])
    return Network(
        "digits", network.eval(), calibration, batches(pictures, 1000), labels,
        _array_writer("image", rows.astype(np.uint8), written[:count]),
    )  # fmt: skip


NETWORKS: dict[str, Callable[[], Network]] = {
    "resnet18": lambda: _pictures("resnet18", resnet.load(18), IMAGENET_MEAN, IMAGENET_STD),
    "resnet50": lambda: _pictures("resnet50", resnet.load(50), IMAGENET_MEAN, IMAGENET_STD),
    "photos": lambda: _pictures("photos", photos.load(), (127,) * 3, (128,) * 3),
    "sentiment": _sentiment,
    "digits": _digits,
}
