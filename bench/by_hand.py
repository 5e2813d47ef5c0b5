"""What a competent person reaches by hand: each tool's own recipe, beside eager FP32.

    python -m bench.by_hand [resnet18 resnet50 photos sentiment digits] [--rounds 5] [--seconds 1]

Everything runs in one process on the same threads, in interleaved rounds; a recipe's figure is the
median of its rounds. How far its answers are from eager FP32's is measured on real inputs that it
was not calibrated with. `ferry optimise` is held to the best of these.
"""

from __future__ import annotations

import argparse
import copy
import functools
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from PIL import Image
from torch import nn

from bench.processes import PROJECT_ROOT
from bench.report import aligned
from samples import digits, photos, resnet
from samples.digits.network import DigitNetwork
from samples.digits.pictures import resize, training_handwriting
from samples.packages import package_folder
from samples.sentiment.model_directory import export, pad
from samples.sentiment.sentences import FOLDER, encode_examples, read_held_out, read_sentences
from samples.sentiment.weights import load_tokenizer, load_trained_model
from shared.datatypes import Array

ROWS = 8
CALIBRATION_BATCHES, ASKED_BATCHES = 8, 8
LEAST_COSINE = 0.99
"""Of the centred logits, on average: a recipe below it is not what anyone would serve."""
PHOTOGRAPHS = ("china", "flower")
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
Inputs = Mapping[str, Array]
Run = Callable[[Inputs], Array]


@dataclass(frozen=True)
class Network:
    """A network in eager mode and real batches of its inputs; `labels` are of those asked."""

    name: str
    module: nn.Module
    calibration: Sequence[Inputs]
    asked: Sequence[Inputs]
    labels: Array | None = None


@dataclass(frozen=True)
class Made:
    """What a recipe made: how it is run, and the file that it would be served from."""

    run: Run
    file: Path | None = None


@dataclass(frozen=True)
class Result:
    """One recipe's figures; `problem` says why there are none."""

    recipe: str
    rates: Sequence[float] = ()
    cosine: float = 0.0
    agreement: float = 0.0
    accuracy: float | None = None
    file_bytes: int = 0
    problem: str = ""

    @property
    def rate(self) -> float:
        """Return the median of the rounds, in rows a second."""
        return statistics.median(self.rates) if self.rates else 0.0


def main() -> None:
    """Make and measure the recipes of each network that is named, and print their tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.by_hand")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="per recipe and round")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if unknown := set(options.names) - set(NETWORKS):
        parser.error(f"no network {', '.join(sorted(unknown))}; there are {', '.join(NETWORKS)}")
    torch.set_num_threads(options.threads)
    for name in options.names or NETWORKS:
        network = NETWORKS[name]()
        results = measure(network, options.rounds, options.seconds, options.threads)
        print(f"\n{name}, {ROWS} rows a batch, {options.threads} threads")
        print(table(results), flush=True)


def measure(network: Network, rounds: int, seconds: float, threads: int) -> list[Result]:
    """Return each recipe's figures, eager FP32 first; what fails is a row that says so."""
    with tempfile.TemporaryDirectory(prefix="ferry-by-hand-") as directory:
        recipes = Recipes(network, Path(directory), threads)
        made, results = dict[str, Made](), dict[str, Result]()
        for name, recipe in recipes.all().items():
            try:
                made[name] = recipe()
                results[name] = _compared(name, network, made[name], made["eager FP32"])
            except Exception as error:  # a border: a tool that cannot do it is told, and left out
                made.pop(name, None)
                lines = str(error).strip().splitlines() or [""]
                results[name] = Result(name, problem=f"{type(error).__name__}: {lines[0][:80]}")
        rates: dict[str, list[float]] = {name: [] for name in made}
        for _ in range(rounds):
            for name, each in made.items():
                rates[name].append(_rows_per_second(each.run, network.asked, seconds))
        return [Result(**{**vars(each), "rates": rates.get(n, ())}) for n, each in results.items()]


def _rows_per_second(run: Run, batches: Sequence[Inputs], seconds: float) -> float:
    run(batches[0])
    rows, start = 0, time.perf_counter()
    while (taken := time.perf_counter() - start) < seconds or not rows:
        run(batches[rows // ROWS % len(batches)])
        rows += ROWS
    return rows / (taken if rows > ROWS else time.perf_counter() - start)


def _compared(name: str, network: Network, made: Made, eager: Made) -> Result:
    """Ask both the same real rows; cosines are of logits whose row's mean was taken off."""
    found = np.concatenate([made.run(batch) for batch in network.asked]).astype(np.float64)
    wanted = np.concatenate([eager.run(batch) for batch in network.asked]).astype(np.float64)
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (found, wanted))
    cosines = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    best = found.argmax(axis=1)
    labels = network.labels
    return Result(
        name,
        cosine=float(cosines.mean()),
        agreement=float((best == wanted.argmax(axis=1)).mean()),
        accuracy=None if labels is None else float((best == labels).mean()),
        file_bytes=made.file.stat().st_size if made.file else 0,
    )


def table(results: Sequence[Result]) -> str:
    """Return the figures as aligned text, and which recipe is the best that is near enough."""
    eager = results[0].rate
    lines: list[Sequence[str]] = [
        ("recipe", "rows/s", "x eager", "spread", "cosine", "top-1", "accuracy", "MB")
    ]
    for each in results:
        if each.problem:
            lines.append((each.recipe, each.problem, *[""] * 6))
            continue
        spread = (max(each.rates) - min(each.rates)) / each.rate
        lines.append((
            each.recipe, f"{each.rate:.1f}", f"{each.rate / eager:.2f}", f"{spread:.2f}",
            f"{each.cosine:.4f}", f"{each.agreement:.3f}",
            "" if each.accuracy is None else f"{each.accuracy:.3f}",
            f"{each.file_bytes / 1e6:.2f}" if each.file_bytes else "",
        ))  # fmt: skip
    near = [each for each in results if each.cosine >= LEAST_COSINE and each.rates]
    best = max(near, key=lambda each: each.rate)
    return f"{aligned(lines, 1)}\nbest by hand: {best.recipe}, {best.rate / eager:.2f} x eager"


class Recipes:
    """The recipes for one network, each as its tool's own documentation has it."""

    def __init__(self, network: Network, directory: Path, threads: int) -> None:
        """Keep files in the directory; sessions of ONNX Runtime have as many threads."""
        self._network = network
        self._module = network.module
        self._directory = directory
        self._threads = threads

    def all(self) -> dict[str, Callable[[], Made]]:
        """Return how each is made, by its name in the table; what a later one needs is earlier."""
        pictures = next(iter(self._network.asked[0].values())).ndim == 4  # noqa: PLR2004
        return {
            "eager FP32": lambda: Made(_torch_run(self._module)),
            "TorchScript": self._traced,
            "TorchScript, frozen": self._frozen,
            **({"eager, channels last": self._channels_last} if pictures else {}),
            "ONNX Runtime FP32": lambda: self._session(self._onnx),
            "INT8 static": lambda: self._session(self._static(reduce_range=False)),
            "INT8 static, 7-bit weights": lambda: self._session(self._static(reduce_range=True)),
            "INT8 dynamic": lambda: self._session(self._dynamic()),
        }

    def _traced(self) -> Made:
        return self._script("traced.pt", lambda traced: traced)

    def _frozen(self) -> Made:
        return self._script("frozen.pt", torch.jit.freeze)

    def _script(self, name: str, changed: Callable[[Any], Any]) -> Made:
        file = self._directory / name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated, and says so each time
            script = changed(torch.jit.trace(self._module, self._example))  # type: ignore[no-untyped-call]
            script.save(str(file))
        return Made(_torch_run(script), file)

    @property
    def _example(self) -> tuple[torch.Tensor, ...]:
        return tuple(map(torch.from_numpy, self._network.asked[0].values()))

    def _channels_last(self) -> Made:
        module = copy.deepcopy(self._module)
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return Made(_torch_run(module, channels_last=True))

    @functools.cached_property
    def _onnx(self) -> Path:
        file = self._directory / "fp32.onnx"
        names = list(self._network.asked[0])
        if len(names) > 1:
            export(self._module, file)
            return file
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                self._module, self._example, file, input_names=names, output_names=["output"],
                dynamic_shapes=({0: torch.export.Dim("batch")},), dynamo=True,
                external_data=False, verbose=False,
            )  # fmt: skip
        return file

    @functools.cached_property
    def _prepared(self) -> Path:
        file = self._directory / "prepared.onnx"
        quant_pre_process(self._onnx, file, skip_symbolic_shape=True)
        return file

    def _static(self, *, reduce_range: bool) -> Path:
        file = self._directory / f"static-{reduce_range}.onnx"
        quantize_static(
            self._prepared, file, _Reader(self._network.calibration), per_channel=True,
            quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8, reduce_range=reduce_range,
        )  # fmt: skip
        return file

    def _dynamic(self) -> Path:
        file = self._directory / "dynamic.onnx"
        quantize_dynamic(self._prepared, file, per_channel=True, weight_type=QuantType.QInt8)
        return file

    def _session(self, file: Path) -> Made:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

        def run(inputs: Inputs) -> Array:
            output: Array = session.run(None, dict(inputs))[0]
            return output

        return Made(run, file)


def _torch_run(module: nn.Module, *, channels_last: bool = False) -> Run:
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def run(inputs: Inputs) -> Array:
        with torch.inference_mode():
            tensors = [torch.from_numpy(each) for each in inputs.values()]
            if channels_last:
                tensors = [each.contiguous(memory_format=layout) for each in tensors]
            output: Array = module(*tensors).numpy()
            return output

    return run


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands out the calibration batches one after another."""

    def __init__(self, batches: Sequence[Inputs]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, Array] | None:
        """Return the next batch, None behind the last."""
        batch = next(self._batches, None)
        return None if batch is None else dict(batch)


def _pictures(name: str, module: nn.Module, mean: Sequence[float], std: Sequence[float]) -> Network:
    """Return a network of pictures, with crops of scikit-learn's two photographs."""
    folder = package_folder("sklearn")
    photographs = [Image.open(folder / "datasets" / "images" / f"{n}.jpg") for n in PHOTOGRAPHS]
    chooser = np.random.default_rng(0)

    def batch() -> Inputs:
        crops = np.stack([_crop(photographs[n % 2], chooser) for n in range(ROWS)])
        scaled = ((crops - np.asarray(mean)) / np.asarray(std)).astype(np.float32)
        return {"input": np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))}

    calibration = [batch() for _ in range(CALIBRATION_BATCHES)]
    return Network(name, module, calibration, [batch() for _ in range(ASKED_BATCHES)])


def _crop(photograph: Image.Image, chooser: np.random.Generator) -> Array:
    side = int(chooser.integers(200, min(photograph.size)))
    left, top = (int(chooser.integers(0, length - side + 1)) for length in photograph.size)
    crop = photograph.crop((left, top, left + side, top + side))
    return np.asarray(crop.resize((224, 224), Image.Resampling.BILINEAR), np.float32)


def _sentiment() -> Network:
    tokenizer = load_tokenizer()

    def batches(pairs: Sequence[tuple[str, str]], count: int) -> tuple[list[Inputs], list[int]]:
        examples = encode_examples(tokenizer, pairs[: count * ROWS], max_length=128)
        found: list[Inputs] = []
        for start in range(0, len(examples) - ROWS + 1, ROWS):
            ids, mask = pad([each.token_ids for each in examples[start : start + ROWS]])
            found.append({"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        return found, [each.label for each in examples[: len(found) * ROWS]]

    calibration, _ = batches(read_sentences(FOLDER / "training_a.tsv"), CALIBRATION_BATCHES)
    asked, labels = batches(read_held_out(), 1000)
    return Network("sentiment", load_trained_model(), calibration, asked, np.array(labels))


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
    handwriting, _ = training_handwriting()
    calibration = batches(handwriting, CALIBRATION_BATCHES)
    return Network("digits", network.eval(), calibration, batches(pictures, 1000), labels)


NETWORKS: dict[str, Callable[[], Network]] = {
    "resnet18": lambda: _pictures("resnet18", resnet.load(18), IMAGENET_MEAN, IMAGENET_STD),
    "resnet50": lambda: _pictures("resnet50", resnet.load(50), IMAGENET_MEAN, IMAGENET_STD),
    "photos": lambda: _pictures("photos", photos.load(), (127,) * 3, (128,) * 3),
    "sentiment": _sentiment,
    "digits": _digits,
}


if __name__ == "__main__":
    main()
