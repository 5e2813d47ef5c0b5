"""The formats of model files: their names in configs, and the files that each takes.

`platform` and `backend` are Triton's words where Triton has one. A backend may stand for several
formats, `pytorch` for three; then the file that is there decides.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from worker.repository.config.parameters import plain_name


class Format(NamedTuple):
    """One kind of model file.

    `backend` is our name (`worker.backends.loading` has a class for each). `platform` and
    `triton_backend` stand in metadata and the model's configuration. `files` are the names
    looked for when the config names none.
    """

    backend: str
    platform: str
    triton_backend: str
    files: tuple[str, ...]
    endings: tuple[str, ...]


FORMATS = (
    Format("torchscript", "pytorch_libtorch", "pytorch", ("model.pt",), (".pt",)),
    Format("torch_export", "torch_export", "pytorch", ("model.pt2",), (".pt2",)),
    Format(
        "torch_state_dict", "torch_state_dict", "pytorch",
        ("weights.safetensors", "model.safetensors", "weights.pt"), (".safetensors", ".pt"),
    ),
    Format("onnxruntime", "onnxruntime_onnx", "onnxruntime", ("model.onnx",), (".onnx", ".ort")),
    Format("joblib", "sklearn", "sklearn", ("model.joblib",), (".joblib",)),
    Format("python", "", "python", ("model.py",), (".py",)),
)  # fmt: skip
BY_BACKEND = {each.backend: each for each in FORMATS}
PLATFORMS = {each.platform: (each,) for each in FORMATS if each.platform}
BACKENDS = {
    "pytorch": FORMATS[:3],
    "onnxruntime": (BY_BACKEND["onnxruntime"],),
    "python": (BY_BACKEND["python"],),
    "sklearn": (BY_BACKEND["joblib"],),
    "joblib": (BY_BACKEND["joblib"],),
    "torch_export": (BY_BACKEND["torch_export"],),
    "torch_state_dict": (BY_BACKEND["torch_state_dict"],),
}


class ModelFile(NamedTuple):
    """The result of `find_format`: the format and the file's name in the version's directory."""

    format: Format
    filename: str


def find_format(
    platform: str, backend: str, filename: str, has_architecture: bool, directory: Path
) -> ModelFile:
    """Return a model's format and file from its config's fields and the files in `directory`.

    `filename` is the config's default_model_filename, `has_architecture` says that its parameters
    name one. Without platform and backend the file that is there decides alone. Of a file that is
    not there the name it should have is returned. Raises ValueError naming field and value.
    """
    formats = _allowed(platform, backend)
    if filename:
        plain_name("default_model_filename", filename)
        return ModelFile(_by_name(formats or FORMATS, filename, has_architecture), filename)
    if formats and has_architecture:
        formats = tuple(each for each in formats if each.backend == "torch_state_dict") or formats
    for each in formats or FORMATS:
        for name in each.files:
            if (directory / name).is_file():
                return ModelFile(each, name)
    if not formats:
        raise ValueError(_expected(platform, backend))
    return ModelFile(formats[0], formats[0].files[0])


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
    """Return the format of a file by its ending, else the first: names are free."""
    fitting = [each for each in formats if filename.endswith(each.endings)] or list(formats)
    weights = [each for each in fitting if each.backend == "torch_state_dict"]
    return weights[0] if weights and has_architecture else fitting[0]


def _expected(platform: str, backend: str) -> str:
    return (
        f"platform {platform!r}, backend {backend!r}: expected one of {sorted(PLATFORMS)} or "
        f"{sorted(BACKENDS)}"
    )
