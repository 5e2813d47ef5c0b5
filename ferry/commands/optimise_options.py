"""The options of the commands that make a model fast, and of inputs, which `ferry add` has too.

What runs them is imported only then: it brings torch.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from importlib import import_module
from pathlib import Path

LARGEST_BATCH = 2**31 - 1
"""The most rows that the field of `config.pbtxt` holds."""
TOLERANCES = {
    "max_relative": "largest relative difference",
    "min_cosine": "least cosine of a row",
    "min_agreement": "least share of real rows of the same class",
    "max_accuracy_drop": "most by which accuracy may fall",
}
"""What `ferry verify` lets one say over a precision's tolerances, each an option of its name."""


def describe_input(argument: Callable[..., object]) -> None:
    """Add what is said of a model's inputs, and of what makes them of pictures and texts."""
    argument(
        "--input",
        action="append",
        default=[],
        dest="inputs",
        metavar="NAME:DIMS[:TYPE]",
        help="what goes in, for one row: x:4, ids:-1:INT64, image:3x224x224, text",
    )
    argument("--labels", type=Path, metavar="FILE", help="names of the classes, one on each line")
    argument("--tokenizer", type=Path, metavar="FILE", help="tokenizer.json, to take texts")
    argument("--max-batch-size", type=_rows, metavar="N", help="most rows at a time; 0: no batches")
    argument(
        "--parameter",
        action="append",
        default=[],
        dest="parameters",
        metavar="KEY=VALUE",
        help="any of config.pbtxt's parameters, as image_mean=0.5",
    )


def describe_original(argument: Callable[..., object]) -> None:
    """Add what fills a callable that makes a module of torch."""
    argument("--weights", type=Path, metavar="FILE", help="state dict or safetensors to load")
    argument("--arguments", default="{}", metavar="JSON", help="keyword arguments of the callable")


def describe_version(argument: Callable[..., object], which: str) -> None:
    """Add which version of a model is meant, and the real rows to ask it."""
    argument("name", metavar="MODEL")
    argument("--version", default="", metavar="N", help=f"{which}, else the highest")
    argument("--data", type=Path, metavar="PATH", help="real rows: a folder of pictures by class, "
             "or CSV, NDJSON, Parquet, npz")  # fmt: skip
    argument("--label", default="", metavar="COLUMN", help="of the data, with the classes")


def describe_repository(argument: Callable[..., object]) -> None:
    """Add where the models are."""
    argument("--models", dest="FERRY_MODELS", metavar="DIR", help="as FERRY_MODELS")


def add_export(command: argparse.ArgumentParser) -> None:
    """Add the options of `ferry export`."""
    command.description = (
        "Write a torch module as new versions of a model, once each format answers as it does."
    )
    argument = command.add_argument
    argument("original", metavar="MODULE:CALLABLE", help="what makes the module; or a joblib file")
    describe_original(argument)
    argument(
        "--to",
        nargs="+",
        action="extend",
        default=[],
        dest="formats",
        metavar="FORMAT",
        help="of torchscript-trace, torchscript-script, exported, onnx, aoti",
    )
    argument("--opset", type=int, metavar="N", help="of ONNX, else the exporter's own")
    describe_repository(argument)
    argument("--name", default="", metavar="N", help="of the model, else the callable's")
    argument("--output", action="append", default=[], dest="output_names", metavar="NAME",
             help="what an output is called, in their order")  # fmt: skip
    describe_input(argument)
    command.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> int:
    commands = import_module("ferry.commands.export")
    add = import_module("ferry.commands.add")
    given = {
        field.name: getattr(options, field.name)
        for field in fields(add.Given)
        if hasattr(options, field.name)
    }
    exported = {field.name: getattr(options, field.name) for field in fields(commands.Exported)}
    return int(
        commands.run_export(
            environment(options), commands.Exported(**exported), add.Given(files=(), **given)
        )
    )


def add_verify(command: argparse.ArgumentParser) -> None:
    """Add the options of `ferry verify`."""
    command.description = (
        "Compare a version with another or with the original, and write the verdict beside it; "
        "exit code 1 when it fails."
    )
    argument = command.add_argument
    describe_version(argument, "to be verified")
    argument(
        "--against",
        default="",
        metavar="VERSION|MODULE:CALLABLE",
        help="else what it was exported from, or the version before",
    )
    describe_original(argument)
    argument("--precision", default="", metavar="P", help="FP32, FP16, BF16 or INT8, else found")
    for name, what in TOLERANCES.items():
        option = f"--{name.replace('_', '-')}"
        read = tolerance if name == "max_relative" else partial(tolerance, most=1)
        argument(option, type=read, metavar="X", help=f"{what}, else the precision's")
    argument("--only-reference", action="store_true",
             help="compare with nothing: write what --data is like, for drift")  # fmt: skip
    describe_repository(argument)
    argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=_verify)


def _verify(options: argparse.Namespace) -> int:
    commands = import_module("ferry.commands.verify")
    said = {name: getattr(options, name) for name in TOLERANCES}
    order = commands.VerifyOrder(
        options.name, options.version, options.against, options.weights, options.arguments,
        options.data, options.label, options.precision,
        {name: value for name, value in said.items() if value is not None}, options.only_reference,
    )  # fmt: skip
    return int(commands.run_verify(environment(options), order, as_json=options.json))


def add_edge(command: argparse.ArgumentParser) -> None:
    """Add the options of `ferry edge`."""
    command.description = (
        "Write a version as a bundle for phones and boards: its files, a manifest, loaders, and a "
        "report of how each file's answers compare with the served version's."
    )
    argument = command.add_argument
    describe_version(argument, "to make it of")
    argument(
        "--to", required=True, choices=("ort", "tflite"), dest="target",
        help="ONNX Runtime's own format, or TFLite",
    )  # fmt: skip
    argument(
        "--target-platform", default="", choices=("arm", "amd64"), dest="platform",
        help="of .ort files: the machine that runs them",
    )  # fmt: skip
    argument(
        "--output", type=Path, metavar="DIR",
        help="the bundle; edge/MODEL-VERSION-FORMAT beside the repository, if not given",
    )  # fmt: skip
    describe_repository(argument)
    command.set_defaults(run=_edge)


def _edge(options: argparse.Namespace) -> int:
    commands = import_module("ferry.commands.verify")
    order = commands.EdgeOrder(
        options.name, options.target, options.version, options.platform, options.output,
        options.data, options.label,
    )  # fmt: skip
    return int(commands.run_edge(environment(options), order))


def tolerance(text: str, most: float = sys.float_info.max) -> float:
    """Read a number from 0, up to `most`."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        wanted = "a number from 0" if most > 1 else "a share from 0 to 1, as 0.01"
        raise argparse.ArgumentTypeError(f"{text!r}: expected {wanted}")
    return value


def _rows(text: str) -> int:
    """Read a number of rows, as `max_batch_size` holds it."""
    if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) > LARGEST_BATCH:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected a number of rows, from 0 to {LARGEST_BATCH}"
        )
    return int(text)


def environment(options: argparse.Namespace) -> dict[str, str]:
    """Return the environment, with the options that stand for settings over it."""
    given = {name: value for name, value in vars(options).items() if name.startswith("FERRY_")}
    return {**os.environ, **{name: value for name, value in given.items() if value is not None}}
