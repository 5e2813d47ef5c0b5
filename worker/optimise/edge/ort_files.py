"""A bundle for ONNX Runtime: `.ort` files in both styles, with the operators that they need.

model.ort                      style Fixed: optimised for CPUs, ready to run
model.with_runtime_opt.ort     style Runtime: for NNAPI, CoreML and others that compile parts
model.required_operators_and_types[.with_runtime_opt].config
what a minimal build of ONNX Runtime must have in it
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime

from shared.errors import BadModel
from worker.instance.tensor_adapter import backend_spec
from worker.optimise.edge.files import EdgeFile, EdgeFiles, Say, tensor_entry
from worker.optimise.precision import precision_of
from worker.optimise.quiet import first_sentence, quiet
from worker.optimise.tuning.files.onnx_files import export_onnx
from worker.optimise.tuning.task import Task
from worker.optimise.tuning.variants import ONNX_BACKEND, TORCH_BACKENDS
from worker.repository.file_kinds import ORT
from worker.repository.sniffer import what_is

MISSING_CONVERTER = (
    "--to ort needs {}, which is not installed: install Ferry with its extra [export]"
)
STYLES = {
    "": "Fixed: optimised for CPUs, ready to run",
    ".with_runtime_opt": "Runtime: for NNAPI, CoreML and others that compile parts of it",
}
"""What each style is, by the part of its files' names that the tool gives it."""
OPERATOR = re.compile(r"(\w+)(\{)?")


def make_ort(
    task: Task, directory: Path, platform: str, _environ: Mapping[str, str], _say: Say
) -> EdgeFiles:
    """Write the `.ort` files and their configs; raises BadModel for what is not ONNX."""
    source = _as_onnx(task)
    with quiet():
        try:
            _convert(source, directory, platform)
        except ModuleNotFoundError as missing:
            raise BadModel(MISSING_CONVERTER.format(missing.name)) from missing
        except Exception as error:  # a border: the tool raises whatever the runtime does
            raise BadModel(
                f"{task.model.spec.key}: ONNX Runtime cannot write it as .ort: "
                f"{first_sentence(error)}"
            ) from error
        precision = precision_of(task.model)
    files = []
    for part, what in STYLES.items():
        file, config = directory / f"model{part}.ort", _config(directory, part)
        operators = [*_operators(config.read_text(encoding="utf-8"))]
        files.append(EdgeFile(file, what, precision, operators, partial(_opened, task, file)))
    spec, batch = backend_spec(task.model.spec), [-1] if task.model.spec.batched else []
    versions = {"onnxruntime": onnxruntime.__version__, "ort_format": _format_of(files[0].path)}
    inputs, outputs = (
        [tensor_entry(each, [*batch, *each.dims]) for each in side]
        for side in (spec.inputs, spec.outputs)
    )
    return EdgeFiles(files, inputs, outputs, versions)


def _as_onnx(task: Task) -> Path:
    """Return the version as an ONNX file in a directory of its own; raises BadModel."""
    model, source = task.model, task.work / "onnx"
    if model.config.backend == ONNX_BACKEND:
        if what_is(model.file) == ORT:
            raise BadModel(
                f"{model.file} is an .ort file already: take the version that it was made from"
            )
        shutil.copytree(model.file.parent, source)  # with weights in files of their own
        (source / model.file.name).rename(source / "model.onnx")
        return source / "model.onnx"
    advice = (
        f"`ferry export package.module:callable --to onnx --name {task.name}` makes a version of "
        f"it, and `ferry edge {task.name} --to ort` takes that"
    )
    if model.config.backend not in TORCH_BACKENDS:
        raise BadModel(f"{model.spec.key} is a model of {model.config.backend}, no ONNX: {advice}")
    source.mkdir()
    try:
        with quiet():
            export_onnx(task, source / "model.onnx")
    except BadModel as error:
        raise BadModel(f"{model.spec.key}: {error}: {advice}") from error
    return source / "model.onnx"


def _convert(source: Path, directory: Path, platform: str) -> None:
    before = [*sys.path]
    try:
        # Brings onnx, an extra.
        from onnxruntime.tools import convert_onnx_models_to_ort as tool  # noqa: PLC0415

        tool.convert_onnx_models_to_ort(
            source,
            output_dir=directory,
            optimization_styles=list(tool.OptimizationStyle),
            target_platform=platform or None,
            enable_type_reduction=True,
        )
    finally:
        sys.path[:] = before  # it leaves a directory of its own there, with a `utils`
    for part in STYLES:
        _forget_places(_config(directory, part))


def _config(directory: Path, part: str) -> Path:
    return directory / f"model.required_operators_and_types{part}.config"


def _forget_places(config: Path) -> None:
    """Leave the directories of this machine out of what the tool noted in a config."""
    lines = config.read_text(encoding="utf-8").splitlines()
    lines = [f"# - {Path(line[4:]).name}" if line.startswith("# - ") else line for line in lines]
    config.write_text("\n".join(dict.fromkeys(lines)) + "\n", encoding="utf-8")


def _operators(config: str) -> Iterator[dict[str, Any]]:
    """Yield the operators in a config: domain, opset, name, and the types that it needs them for.

    Lines are `domain;opset;Operator{"inputs": {...}},Operator`. Source:
    https://onnxruntime.ai/docs/reference/operators/reduced-operator-config-file.html
    """
    for line in config.splitlines():
        if not line or line[0] in "#!":
            continue
        domain, opsets, rest = line.split(";", 2)
        at = 0
        while found := OPERATOR.search(rest, at):
            types: dict[str, Any] = {}
            at = found.end()
            if found[2]:
                types, at = json.JSONDecoder().raw_decode(rest, found.end() - 1)
            yield {
                "domain": domain, "opset": [int(each) for each in opsets.split(",")],
                "operator": found[1], "types": types,
            }  # fmt: skip


def _opened(task: Task, file: Path) -> Any:
    return nullcontext(task.subject(file, ONNX_BACKEND, threads=1))


def _format_of(file: Path) -> str:
    """Return the version of the format that a file is written in."""
    from ort_flatbuffers_py.fbs.InferenceSession import (  # type: ignore[import-not-found]  # noqa: PLC0415
        InferenceSession,
    )

    said: bytes = InferenceSession.GetRootAs(file.read_bytes(), 0).OrtVersion()
    return said.decode()
