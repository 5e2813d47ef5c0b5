"""Writes a module in each of the formats that are served: what the library writes, and no less.

A writer raises BadModel with one sentence: what the format cannot follow, and what to do instead.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shared.errors import BadModel
from worker.backends.torch_compiled import FLAGS_KEY, compiled_for
from worker.optimise.example import Example
from worker.optimise.quiet import first_sentence, quiet

DATA_DEPENDENT = re.compile(
    r"data-dependent|Could not guard on|unbacked|dynamic control flow|UserErrorType.DYNAMIC"
)
WHERE = re.compile(r"(?:^|[\s\"(])(/[^\s:\"]+\.py)[:\"](?:, line |:)?\s*(\d+)")
DECISION = (
    "its forward decides by the values of its data{where}, and {format} follows one way only: "
    "export it with --to torchscript-script, or write the decision with torch.where"
)
VALUE = (
    "the trace does not answer other rows, or other batches, as the model does ({fault}): its "
    "forward depends on "
    "values or sizes that a trace keeps as they were, export it with --to torchscript-script, or "
    "with --to exported"
)
NO_OPERATOR = re.compile(r"No ONNX function found for <OpOverload\(op='([\w.]+)'")
BATCH, SEQUENCE = "batch", "sequence"


@dataclass
class Job:
    """What is written: the module, the arguments of its example, names, and what was made of it."""

    example: Example
    arguments: tuple[torch.Tensor, ...]
    opset: int | None = None
    program: Any = None
    notes: list[str] = field(default_factory=list)

    @property
    def module(self) -> nn.Module:
        """Return the module, which is in eval mode."""
        return self.example.module

    @property
    def free_dimensions(self) -> tuple[dict[int, Any], ...]:
        """Return the free dimensions of each argument: the batch, and those declared as -1."""
        dynamic = torch.export.Dim.DYNAMIC
        return tuple(
            {0: dynamic} | {at: dynamic for at, size in enumerate(tensor.dims, 1) if size == -1}
            for tensor in self.ordered_inputs
        )

    @property
    def ordered_inputs(self) -> Sequence[Any]:
        """Return the declared inputs in the order of the arguments."""
        return self.example.ordered_inputs()


def _trace(job: Job, file: Path) -> None:
    with quiet() as caught, torch.no_grad():
        try:
            traced: Any = torch.jit.trace(  # type: ignore[no-untyped-call]
                job.module, job.arguments, check_trace=False, strict=False
            )
        except Exception as error:  # a border: the tracer raises many kinds
            raise BadModel(f"torch.jit.trace cannot follow it: {first_sentence(error)}") from error
        traced.save(str(file))
    warned = [each for each in caught if each.category.__name__ == "TracerWarning"]
    if warned and (fault := _decision(job, "a trace")):
        raise BadModel(fault)


def _decision(job: Job, what: str) -> str:
    """Return the sentence of a module that decides by its data; empty when it does not.

    The tracer warns of checks of sizes as well, which are harmless: torch.export tells them apart.
    """
    try:
        _program(job)
    except BadModel as error:
        found = re.search(r" \(([^()]+\.py:\d+)\)", str(error))
        if "decides by the values" in str(error):
            return DECISION.format(where=f" ({found[1]})" if found else "", format=what)
    return ""


def _script(job: Job, file: Path) -> None:
    with quiet():
        try:
            scripted: Any = torch.jit.script(job.module)
        except Exception as error:  # a border: the compiler raises many kinds
            raise BadModel(
                f"torch.jit.script cannot compile its Python: {first_sentence(error)}; write that "
                "part in the subset of Python that TorchScript knows, or export it with --to "
                "exported or onnx"
            ) from error
        scripted.save(str(file))


def _exported(job: Job, file: Path) -> None:
    program = _program(job)
    with quiet():
        torch.export.save(program, file)


def _program(job: Job) -> Any:
    """Return the module as torch.export has it, made once for all formats that want it."""
    if job.program is None:
        with quiet(), torch.no_grad():
            try:
                job.program = torch.export.export(
                    job.module, job.arguments, dynamic_shapes=job.free_dimensions, strict=False
                )
            except Exception as error:  # a border: torch.export raises many kinds
                raise BadModel(_not_exported(error)) from error
    return job.program


def _not_exported(error: Exception) -> str:
    said = f"{type(error).__name__} {error}"
    if DATA_DEPENDENT.search(said):
        return DECISION.format(where=_where(said), format="torch.export")
    if "onstraints violated" in said or "specialized" in said or "ConstraintViolation" in said:
        return (
            "its forward works for one size of the batch, or of a free dimension, alone: take "
            "sizes from the tensors (x.shape[0]) where it has them as numbers, and compute over "
            "the batch instead of going through its rows"
        )
    return f"torch.export cannot follow it: {first_sentence(error)}"


def _where(said: str) -> str:
    """Return the operator's own line in an error's text, in brackets; empty when it has none."""
    ours = (os.sep + "torch" + os.sep, os.sep + "worker" + os.sep)
    for file, line in WHERE.findall(said):
        if not any(part in file for part in ours):
            return f" ({Path(file).name}:{line})"
    return ""


def _onnx(job: Job, file: Path) -> None:
    try:
        import onnx  # noqa: PLC0415  an extra, which a machine that serves does not need
        import onnxscript  # noqa: F401, PLC0415  torch's exporter is built upon it
    except ModuleNotFoundError as missing:
        raise BadModel(
            f"--to onnx needs {missing.name}, which is not installed: install Ferry with its extra "
            "[export]"
        ) from missing
    program = _program(job)
    with quiet(), torch.no_grad():
        try:
            torch.onnx.export(
                program,
                (),
                file,
                input_names=[tensor.name for tensor in job.ordered_inputs],
                output_names=[each.name for each in job.example.outputs],
                opset_version=job.opset,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # a border: the exporter raises many kinds
            raise BadModel(_not_onnx(error)) from error
        model = onnx.load(str(file))
    _check_opset(job, model)
    _name_axes(job, model)
    try:
        model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # a border: the checker's errors have no base
        raise BadModel(f"the ONNX file fails onnx's checker: {first_sentence(error)}") from error
    onnx.save(model, str(file))


def _not_onnx(error: Exception) -> str:
    said = _innermost(error)
    if missing := NO_OPERATOR.search(said):
        return (
            f"ONNX has no operator for {missing[1]}: write that part with others, or serve the "
            "model in another format, as --to exported"
        )
    return f"torch.onnx.export cannot write it: {said}"


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return first_sentence(error)


def _check_opset(job: Job, model: Any) -> None:
    written = {each.domain: each.version for each in model.opset_import}.get("", 0)
    if job.opset is not None and written != job.opset:
        raise BadModel(
            f"--opset {job.opset}: torch's exporter wrote {written}, it cannot put this model into "
            f"{job.opset}; leave --opset out, or choose one near {written}"
        )
    job.notes.append(f"ONNX opset {written}")


def _name_axes(job: Job, model: Any) -> None:
    """Call the free dimensions of an ONNX model by what they are; torch numbers them."""
    names: dict[str, str] = {}
    for value, tensor in zip(model.graph.input, job.ordered_inputs, strict=True):
        for at, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_param:
                is_tokens = tensor.name in {"input_ids", "attention_mask", "token_type_ids"}
                other = SEQUENCE if is_tokens else f"{tensor.name}_{at}"
                names.setdefault(dim.dim_param, BATCH if at == 0 else other)
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    for value in values:
        for dim in value.type.tensor_type.shape.dim:
            for old, new in names.items() if dim.dim_param else ():
                dim.dim_param = re.sub(rf"\b{re.escape(old)}\b", new, dim.dim_param)


def _aoti(job: Job, file: Path) -> None:
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++")), "")
    if not compiler or not shutil.which(compiler):
        raise BadModel(
            "--to aoti needs a C++ compiler, and there is none here: apt-get install g++, or set "
            "CXX to one"
        )
    program = _program(job)
    with quiet(), torch.no_grad():
        try:
            torch._inductor.aoti_compile_and_package(
                program,
                package_path=str(file),
                # subtle: no "freezing", though it is 1.1 times as fast: with torch 2.13 a package
                # of linear and batch norm damaged the heap of the process that ran it.
                inductor_configs={
                    "cpp.dynamic_threads": True,  # else those of this machine are compiled in
                    "aot_inductor.metadata": {FLAGS_KEY: " ".join(compiled_for())},
                },
            )
        except Exception as error:  # a border: inductor raises many kinds
            raise BadModel(f"AOTInductor cannot compile it: {first_sentence(error)}") from error


@dataclass(frozen=True)
class ExportFormat:
    """One word of `--to`: how it is written, the file's name, and the backend that serves it."""

    write: Callable[[Job, Path], None]
    filename: str
    backend: str


EXPORT_FORMATS: Mapping[str, ExportFormat] = {
    "torchscript-trace": ExportFormat(_trace, "model.pt", "torchscript"),
    "torchscript-script": ExportFormat(_script, "model.pt", "torchscript"),
    "exported": ExportFormat(_exported, "model.pt2", "torch_export"),
    "onnx": ExportFormat(_onnx, "model.onnx", "onnxruntime"),
    "aoti": ExportFormat(_aoti, "model.pt2", "torch_aoti"),
}
