"""The formats of model files: their names in configs, and which file of a version it is.

`platform` and `backend` are Triton's words where Triton has one. A backend may stand for several
formats, `pytorch` for five: then what is in the file decides, whatever it is called.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from worker.repository.config.parameters import plain_name
from worker.repository.file_kinds import (
    MISSING,
    RUN_CODE,
    SAVED_MODEL,
    FileKind,
    code_refusal,
)
from worker.repository.sniffer import what_is


class Format(NamedTuple):
    """One kind of model file.

    `backend` is our name (`worker.backends.loading` has a class for each). `platform` and
    `triton_backend` stand in metadata and the model's configuration. `files` are the names
    looked for first when the config names none.
    """

    backend: str
    platform: str
    triton_backend: str
    files: tuple[str, ...]
    endings: tuple[str, ...]


FORMATS = (
    Format("torchscript", "pytorch_libtorch", "pytorch", ("model.pt",), (".pt",)),
    Format("torch_export", "torch_export", "pytorch", ("model.pt2",), (".pt2",)),
    Format("torch_aoti", "torch_aoti", "pytorch", ("model.pt2",), (".pt2",)),
    Format(
        "torch_state_dict", "torch_state_dict", "pytorch",
        ("weights.safetensors", "model.safetensors", "weights.pt"), (".safetensors", ".pt"),
    ),
    Format(
        "torch_pickle", "torch_pickle", "pytorch", ("model.pth",), (".pth", ".bin", ".ckpt", ".pkl")
    ),
    Format("onnxruntime", "onnxruntime_onnx", "onnxruntime", ("model.onnx",), (".onnx", ".ort")),
    Format("joblib", "sklearn", "sklearn", ("model.joblib",), (".joblib",)),
    Format("python", "", "python", ("model.py",), (".py",)),
)  # fmt: skip
BY_BACKEND = {each.backend: each for each in FORMATS}
TORCH = FORMATS[:5]
PLATFORMS = {each.platform: (each,) for each in FORMATS if each.platform} | {
    "pytorch_libtorch": TORCH
}
BACKENDS = {
    "pytorch": TORCH,
    "onnxruntime": (BY_BACKEND["onnxruntime"],),
    "python": (BY_BACKEND["python"],),
    "sklearn": (BY_BACKEND["joblib"],),
    "joblib": (BY_BACKEND["joblib"],),
    "torch_export": (BY_BACKEND["torch_export"],),
    "torch_aoti": (BY_BACKEND["torch_aoti"],),
    "torch_pickle": (BY_BACKEND["torch_pickle"],),
    "torch_state_dict": (BY_BACKEND["torch_state_dict"],),
}
ENDINGS = frozenset(
    {
        ".pt", ".pth", ".pt2", ".ptl", ".ts", ".jit", ".pte", ".mar", ".bin", ".ckpt",
        ".safetensors", ".pkl", ".pickle", ".joblib", ".onnx", ".ort", ".h5", ".hdf5", ".keras",
        ".pb", ".savedmodel", ".tflite", ".plan", ".engine", ".trt", ".gguf", ".zip", ".tar", ".gz",
        ".tgz", ".bz2", ".xz", ".z", ".lzma", ".lz4", ".model", ".pmml", ".cbm", ".ubj",
    }
)  # fmt: skip
"""Endings of files that are brought as models, also of those that nothing here runs."""
LEFT_TO_LOADING = {"empty", "missing", "text", "unknown"}
"""Kinds of files that whoever loads them may know more about."""
NO_ARCHITECTURE = (
    "name the code that makes its module with "
    'parameters { key: "architecture" value { string_value: "package.module:callable" } }, or save '
    "the whole model with torch.export.save"
)


class ModelFile(NamedTuple):
    """The result of `find_format`: the format, the file's name in its directory, and its kind."""

    format: Format
    filename: str
    kind: FileKind


def find_format(
    platform: str, backend: str, filename: str, has_architecture: bool, directory: Path
) -> ModelFile:
    """Return a model's format and file from its config's fields and the files in `directory`.

    `filename` is the config's default_model_filename, `has_architecture` says that its parameters
    name one. What is in the file decides among the formats that platform and backend leave open;
    of a file that says nothing its name does. Of one that is not there the name it should have is
    returned. Raises ValueError naming field and value.
    """
    formats = _allowed(platform, backend)
    if filename:
        plain_name("default_model_filename", filename)
        filename = _file_called(directory, filename) or filename
    else:
        filename = _found(formats, has_architecture, directory)
    if not filename:
        if not formats:
            raise ValueError(_expected(platform, backend))
        return ModelFile(formats[0], formats[0].files[0], MISSING)
    kind = what_is(directory / filename)
    by_content = BY_BACKEND.get(kind.backend)
    is_python = [each.backend for each in formats] == ["python"]
    if by_content is None or is_python:
        return ModelFile(_by_name(formats or FORMATS, filename, has_architecture), filename, kind)
    if formats and by_content not in formats:
        raise ValueError(_another(platform, backend, filename, kind))
    return ModelFile(by_content, filename, kind)


def content_fault(found: ModelFile, *, has_architecture: bool, trusted: Collection[str]) -> str:
    """Return why a file cannot be served by what is in it, and what to do; empty when it may be."""
    kind, backend = found.kind, found.format.backend
    if backend == "python":
        return ""
    if not kind.backend:
        return "" if kind.name in LEFT_TO_LOADING else kind.sentence
    if backend in RUN_CODE and backend not in trusted:
        return code_refusal(kind)
    if backend == "torch_state_dict" and not has_architecture:
        return f"{kind.what}: {NO_ARCHITECTURE}"
    return ""


def holds_model_file(version: Path) -> bool:
    """Tell whether a version's directory has a file, or a SavedModel, that is named as a model."""
    try:
        names = os.listdir(version)
    except OSError:
        return False
    return any(
        name == "model.py" or Path(name).suffix.lower() in ENDINGS
        for name in names
        if not name.startswith(".")
    )


def _found(formats: tuple[Format, ...], has_architecture: bool, directory: Path) -> str:
    """Return the name of the file in a version's directory, empty without one.

    The usual names come first, then the only file that is a model of the formats. Raises
    ValueError for several.
    """
    ordered = formats or FORMATS
    if has_architecture:
        ordered = (*(each for each in ordered if each.backend == "torch_state_dict"), *ordered)
    for each in ordered:
        for name in each.files:
            if inner := _file_called(directory, name):
                return inner
    others = sorted(each for each in _entries(directory) if each.suffix.lower() in ENDINGS)
    kinds = {each.name: what_is(each) for each in others}
    allowed = {each.backend for each in ordered}
    models = [name for name, kind in kinds.items() if kind.backend in allowed]
    if len(models) > 1:
        raise ValueError(f"default_model_filename left out, and there are several files: {models}")
    known = [name for name, kind in kinds.items() if kind.name not in LEFT_TO_LOADING]
    return next(iter(models or known or ([] if formats else kinds)), "")


def _file_called(directory: Path, name: str) -> str:
    """Return where the file of this name is, empty without one.

    Triton takes a directory of that name for a model with what belongs to it: `model.onnx/` with
    the file `model.onnx` and its weights.
    """
    return next((each for each in (name, f"{name}/{name}") if (directory / each).is_file()), "")


def _entries(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    return [
        each
        for each in directory.iterdir()
        if not each.name.startswith(".") and (each.is_file() or what_is(each) == SAVED_MODEL)
    ]


def _allowed(platform: str, backend: str) -> tuple[Format, ...]:
    """Return the formats that platform and backend leave open; none when both are empty."""
    if not platform and not backend:
        return ()
    found = PLATFORMS.get(platform) or (() if platform else BACKENDS.get(backend, ()))
    if platform == "python":
        found = BACKENDS["python"]
    if not found:
        raise ValueError(_expected(platform, backend))
    return found


def _by_name(formats: tuple[Format, ...], filename: str, has_architecture: bool) -> Format:
    """Return the format of a file by its name, else its ending, else the first."""
    fitting = [each for each in formats if filename in each.files]
    fitting = fitting or [each for each in formats if filename.endswith(each.endings)]
    fitting = fitting or list(formats)
    weights = [each for each in fitting if each.backend == "torch_state_dict"]
    return weights[0] if weights and has_architecture else fitting[0]


def _another(platform: str, backend: str, filename: str, kind: FileKind) -> str:
    """Return why a file does not fit the config, and what to write."""
    said = f"platform {platform!r}" if platform else f"backend {backend!r}"
    right = BY_BACKEND[kind.backend]
    word = f'platform: "{right.platform}"' if right.platform else 'backend: "python"'
    return f"{said}, but {filename} is {kind.what}: write {word}, or leave platform and backend out"


def _expected(platform: str, backend: str) -> str:
    return (
        f"platform {platform!r}, backend {backend!r}: expected one of {sorted(PLATFORMS)} or "
        f"{sorted(BACKENDS)}"
    )
