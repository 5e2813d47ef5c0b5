"""A bundle for TFLite: one row at a time, in FP32 and in dynamic INT8, made by litert-torch."""

from __future__ import annotations

import io
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from shared.datatypes import Array, datatype_of
from shared.errors import BadModel, BadModelOutput
from worker.backends.base import named_outputs
from worker.backends.preprocessing import PixelArrays
from worker.backends.torch_arrays import to_torch
from worker.backends.torch_model import TorchBackend
from worker.backends.torch_state_dict import arguments_of
from worker.instance.tensor_adapter import adapted, backend_spec
from worker.optimise.edge.files import EdgeFile, EdgeFiles, Say
from worker.optimise.edge.litert_child import DESCRIPTION, FILES, receive, send
from worker.optimise.edge.litert_environment import litert_command
from worker.optimise.export import EXPORT_RECORD
from worker.optimise.quiet import first_sentence, quiet
from worker.optimise.subjects import Subject
from worker.optimise.tuning.files.torch_files import torch_module
from worker.optimise.tuning.task import Task, feeds
from worker.optimise.verify import exported_original

CONVERTING_LIMIT_SECONDS = 1800.0
ANSWERING_LIMIT_SECONDS = 300.0
MODULE_BACKENDS = ("torch_export", "torch_state_dict", "torch_pickle")
"""Whose files torch makes a module of that torch.export follows; TorchScript is none."""


def make_tflite(
    task: Task, directory: Path, _platform: str, environ: Mapping[str, str], say: Say
) -> EdgeFiles:
    """Write both TFLite files; raises BadModel for what cannot become TFLite."""
    program = task.work / "program.pt2"
    _save_program(task, program)
    command = litert_command(environ, say)
    _run([*command, "convert", str(program), str(task.work)], task)
    described = json.loads((task.work / DESCRIPTION).read_text(encoding="utf-8"))
    files, notes = [], []
    for name, precision in zip(FILES, ("FP32", "INT8"), strict=True):
        if fault := described[name].get("fault"):
            notes.append(f"{name} is left out: {fault}")
            continue
        file = directory / name
        shutil.move(task.work / name, file)
        opened = partial(_opened, task, command, file)
        what, operators = f"{precision}, one row at a time", described[name]["operators"]
        files.append(EdgeFile(file, what, precision, operators, opened, name == FILES[0]))
    first = described[FILES[0]]
    inputs, outputs = (_entries(first[side]) for side in ("inputs", "outputs"))
    return EdgeFiles(files, inputs, outputs, first["versions"], notes)


def _entries(tensors: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"name": name, "datatype": datatype_of(np.zeros(0, each["numpy_type"])), **each}
        for name, each in tensors.items()
    ]


def _save_program(task: Task, file: Path) -> None:
    """Save the version as a program of torch.export for one row, with inputs by name."""
    spec = backend_spec(task.model.spec)
    for tensor in spec.inputs:
        if tensor.datatype == "BYTES" or -1 in tensor.dims:
            said = "strings" if tensor.datatype == "BYTES" else f"the sizes {list(tensor.dims)}"
            raise BadModel(
                f"{spec.key}: input {tensor.name!r} has {said}, and TFLite's are numbers of fixed "
                f"sizes: `ferry export package.module:callable --to exported --name {task.name}` "
                f"with --input {tensor.name}:128:INT64, or the size that you want, makes a version "
                "that it takes"
            )
    module = _module(task)
    with quiet(), torch.no_grad():
        arrays = feeds(task, task.made_up.take([0]))
        example = {name: to_torch(arrays[name]) for name in _input_names(task, module)}
        named = _Named(module, list(example), [each.name for each in spec.outputs])
        try:
            program = torch.export.export(named, (), kwargs=example, strict=False)
            torch.export.save(program, file)
        except Exception as error:  # a border: torch.export raises many kinds
            raise BadModel(
                f"{spec.key}: torch.export cannot follow it: {first_sentence(error)}"
            ) from error


def _module(task: Task) -> nn.Module:
    """Return the version's module, or that of what it was exported from; raises BadModel."""
    model = task.model
    if model.config.backend in MODULE_BACKENDS:
        return torch_module(task)
    original = exported_original(model.file.parent / EXPORT_RECORD)
    if original is not None:
        return original.make().eval()
    raise BadModel(
        f"{model.spec.key} is a model of {model.config.backend}, and TFLite is made of a program "
        f"of torch.export: `ferry export package.module:callable --to exported --name {task.name}` "
        f"makes such a version, and `ferry edge {task.name} --to tflite` takes that"
    )


def _input_names(task: Task, module: nn.Module) -> list[str]:
    """Return the inputs in the order of the arguments that they feed."""
    spec, cpu = backend_spec(task.model.spec), torch.device("cpu")
    if task.model.config.backend == "torch_export":
        from worker.backends.torch_export import TorchExportBackend  # noqa: PLC0415  slow

        return TorchExportBackend(spec, task.model.file, "cpu").input_names
    return TorchBackend(spec, module, arguments_of(module), cpu).input_names


class _Named(nn.Module):
    """Takes its inputs by name and names its outputs, as TFLite keeps them."""

    def __init__(self, inner: nn.Module, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Have `inner` do it."""
        super().__init__()
        self.inner = inner
        self.inputs, self.outputs = inputs, outputs

    def forward(self, **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the declared outputs."""
        answer = self.inner(*[tensors[name] for name in self.inputs])
        return named_outputs(answer, self.outputs)


def _run(command: Sequence[str], task: Task) -> None:
    """Run a step in the other environment; raises BadModel with its last words."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace",
            timeout=CONVERTING_LIMIT_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BadModel(f"{task.model.spec.key}: litert-torch: {error}") from error
    if done.returncode != 0:
        raise BadModel(f"{task.model.spec.key}: litert-torch cannot do it: {_last(done.stderr)}")


def _last(output: str) -> str:
    """Return the error that a traceback ends with; its own lines may be several."""
    lines = [line.rstrip() for line in output.splitlines() if line.strip()] or ["it ended"]
    starts = [at for at, line in enumerate(lines) if line[:1].isalpha() and "Error" in line[:60]]
    return lines[starts[-1] if starts else -1][:300]


@contextmanager
def _opened(task: Task, command: Sequence[str], file: Path) -> Iterator[Subject]:
    """Open a TFLite file as a model that is asked as the version is."""
    spec = task.model.spec
    with _Process(command, file) as process:
        backend = _OneRow(process, PixelArrays(backend_spec(spec)), spec.batched)
        yield Subject(file.name, spec, adapted(backend, spec))


class _OneRow:
    """A TFLite file as a backend: rows one by one."""

    def __init__(self, process: _Process, pixels: PixelArrays, is_batched: bool) -> None:
        """Ask `process`."""
        self._process, self._pixels, self._is_batched = process, pixels, is_batched

    def forward(self, inputs: Mapping[str, Array], pixels: frozenset[str]) -> dict[str, Array]:
        """Run one batch; see `Backend.forward`."""
        arrays = {
            name: self._pixels(array) if name in pixels else array for name, array in inputs.items()
        }
        if not self._is_batched:
            return self._process.ask(arrays)
        count = len(next(iter(arrays.values())))
        answers = [
            self._process.ask({name: array[at : at + 1] for name, array in arrays.items()})
            for at in range(count)
        ]
        return {name: np.concatenate([each[name] for each in answers]) for name in answers[0]}


class _Process:
    """`litert_child.py` that serves one file, until the block ends."""

    def __init__(self, command: Sequence[str], file: Path) -> None:
        """Start it."""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed where the block ends
        self._process = subprocess.Popen(
            [*command, "serve", str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._errors, bufsize=0,
        )  # fmt: skip

    def __enter__(self) -> _Process:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.kill()
        self._process.wait()
        self._errors.close()

    def ask(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs for one row; raises BadModelOutput when it ended."""
        assert self._process.stdin is not None, "it was started with a pipe"
        content = io.BytesIO()
        send(content, dict(arrays))
        with suppress(BrokenPipeError):  # what it said is read below
            self._process.stdin.write(content.getvalue())
        return self._received()

    def _received(self) -> dict[str, Array]:
        assert self._process.stdout is not None, "it was started with a pipe"
        limit = time.monotonic() + ANSWERING_LIMIT_SECONDS
        head = _read(self._process.stdout.fileno(), 8, limit)
        body = _read(self._process.stdout.fileno(), int.from_bytes(head, "big"), limit)
        found = receive(io.BytesIO(head + body))
        if found is None:
            self._errors.seek(0)
            said = _last(self._errors.read().decode(errors="replace"))
            raise BadModelOutput(f"LiteRT does not answer: {said}")
        return found


def _read(number: int, count: int, limit: float) -> bytes:
    """Read exactly so many bytes; fewer where the other side ended or the time is up."""
    found = bytearray()
    while len(found) < count:
        seconds = limit - time.monotonic()
        if seconds <= 0 or not select.select([number], [], [], seconds)[0]:
            break
        if not (more := os.read(number, min(1 << 20, count - len(found)))):
            break
        found += more
    return bytes(found)
