"""TorchServe's model archives (`.mar`): what of one a repository takes over, and what it cannot.

An archive is a zip file with `MAR-INF/MANIFEST.json`, the model's file, and code. Nothing of it is
run here, and only the files that are taken over are unpacked, by plain names into one directory.
"""

from __future__ import annotations

import ast
import json
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.errors import BadModel

ENDING = ".mar"
MANIFEST, CLASS_FILE = "MAR-INF/MANIFEST.json", "index_to_name.json"
MOST_TEXT_BYTES = 16 << 20
"""Of the manifest, the names of the classes and a file of code."""
MOST_GROWTH = 100
"""Times an archive's own size that its model may have: weights hardly shrink."""
# TorchServe's `image_classifier` does this before the model, and softmax behind it.
IMAGE_CLASSIFIER_INPUT = "image:3x224x224"
IMAGE_CLASSIFIER = {
    "image_resize": "crop",
    "image_resize_size": "256",
    "image_interpolation": "bilinear",
    "image_scale": "0.00392156862745098",
    "image_mean": "0.485,0.456,0.406",
    "image_std": "0.229,0.224,0.225",
    "output_activation": "softmax",
}


@dataclass(frozen=True)
class Unpacked:
    """An archive's model as a file, with what the archive says of it; `notes` is the rest."""

    name: str
    file: Path
    labels: Path | None = None
    input: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def unpack(archive: Path, directory: Path, *, architecture: bool) -> Unpacked:
    """Write what can be taken over of an archive into an empty directory.

    `architecture` tells that the operator named the code that makes the module of a state dict.
    Raises BadModel saying what is wrong with the archive, or which option it needs.
    """
    with _opened(archive) as members:
        manifest = _manifest(archive, members)
        model = manifest["model"]
        file = _extracted(archive, members, _said(model, "serializedFile"), directory)
        if file is None:
            raise BadModel(
                f"{archive}: its manifest names no serializedFile, so that only its handler knows "
                "which file is the model: unpack it and name that file"
            )
        notes = _notes(manifest, members)
        if code := _said(model, "modelFile"):
            source = _extracted(archive, members, code, directory, MOST_TEXT_BYTES)
            if not architecture and source is not None:
                raise BadModel(f"{archive}: {_architecture_wanted(source)}")
        labels = _labels(archive, members, directory, notes)
    pictures = _said(model, "handler") == "image_classifier"
    return Unpacked(
        _said(model, "modelName") or archive.stem, file, labels,
        IMAGE_CLASSIFIER_INPUT if pictures else "", IMAGE_CLASSIFIER if pictures else {},
        tuple(notes),
    )  # fmt: skip


@contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive; whatever zipfile says of its bytes becomes one BadModel."""
    if not archive.is_file():
        raise BadModel(f"{archive}: no such file")
    try:
        with zipfile.ZipFile(archive) as members:
            yield members
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise BadModel(f"{archive}: not a readable zip archive: {error}") from error


def _manifest(archive: Path, members: zipfile.ZipFile) -> dict[str, Any]:
    """Return the manifest, whose `model` is an object; raises BadModel."""
    if MANIFEST not in members.namelist():
        raise BadModel(f"{archive}: it has no {MANIFEST}, so it is no archive of TorchServe")
    try:
        manifest = json.loads(_bytes(archive, members, MANIFEST, MOST_TEXT_BYTES))
    except (ValueError, RecursionError) as error:
        raise BadModel(f"{archive}: {MANIFEST} is no JSON: {error}") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("model"), dict):
        raise BadModel(f"{archive}: {MANIFEST} has no object 'model'")
    return manifest


def _said(model: Mapping[str, Any], key: str) -> str:
    value = model.get(key)
    return value if isinstance(value, str) else ""


def _bytes(archive: Path, members: zipfile.ZipFile, name: str, limit: int) -> bytes:
    size = members.getinfo(name).file_size
    if size > limit:
        raise BadModel(f"{archive}: {name} unpacks to {size} bytes, more than {limit}")
    return members.read(name)


def _extracted(
    archive: Path, members: zipfile.ZipFile, name: str, directory: Path, limit: int = 0
) -> Path | None:
    """Write a member that the manifest names into the directory; None where it names none."""
    if not name:
        return None
    if Path(name).name != name or "\\" in name or "\0" in name or name == "..":
        raise BadModel(f"{archive}: the manifest names {name!r}, expected a file's name alone")
    if name not in members.namelist():
        raise BadModel(f"{archive}: the manifest names {name}, which the archive does not hold")
    size, limit = members.getinfo(name).file_size, limit or MOST_GROWTH * archive.stat().st_size
    if size > limit:
        raise BadModel(f"{archive}: {name} unpacks to {size} bytes, more than {limit}")
    path = directory / name
    with members.open(name) as packed, path.open("xb") as file:
        shutil.copyfileobj(packed, file)
    return path


def _architecture_wanted(source: Path) -> str:
    """Say how the class of an eager model is named; it is found without running the file."""
    try:
        found = [n for n in ast.parse(source.read_bytes()).body if isinstance(n, ast.ClassDef)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        found = []
    named = found[0].name if len(found) == 1 else "CLASS"
    return (
        f"its weights are loaded into a class of {source.name}, which is code: look at it, then "
        f"add --architecture {source.stem}:{named}"
    )


def _labels(
    archive: Path, members: zipfile.ZipFile, directory: Path, notes: list[str]
) -> Path | None:
    """Write the names of the classes, one a line, where the archive has one for each number."""
    if CLASS_FILE not in members.namelist():
        return None
    try:
        found = json.loads(_bytes(archive, members, CLASS_FILE, MOST_TEXT_BYTES))
        # A name, or ImageNet's number of it and the name.
        names = [found[str(n)] for n in range(len(found))]
        lines = [" ".join((n[-1] if isinstance(n, list) else n).split()) for n in names]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        notes.append(f"{CLASS_FILE} is left out: it has no name for each class from 0 on")
        return None
    path = directory / "labels.txt"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def _notes(manifest: Mapping[str, Any], members: zipfile.ZipFile) -> list[str]:
    """Return a sentence for each part that is not taken over."""
    model = manifest["model"]
    handler = _said(model, "handler")
    taken = {MANIFEST, CLASS_FILE, _said(model, "serializedFile"), _said(model, "modelFile")}
    notes = [_handler_note(handler)] if handler else []
    for key, why in (
        ("requirementsFile", "its packages are not installed, install what the model needs"),
        ("configFile", "batches, workers and delays are said in config.pbtxt"),
    ):
        if name := _said(model, key):
            notes.append(f"{name} is left out: {why}")
            taken.add(name)
    if version := _said(model, "modelVersion"):
        notes.append(f"its version {version!r} is left out: Ferry counts versions 1, 2, 3, ...")
    if _said(manifest, "runtime").upper() == "LSP":
        notes.append("its handler is made for TorchServe's C++ runtime, which there is none of")
    code = handler.partition(":")[0]
    rest = sorted(n for n in members.namelist() if n not in {*taken, code} and n[-1:] != "/")
    if rest:
        more = f" and {len(rest) - 5} more" if len(rest) > 5 else ""  # noqa: PLR2004
        notes.append(f"{', '.join(rest[:5])}{more}: left out, only its handler read them")
    return notes


def _handler_note(handler: str) -> str:
    if handler == "image_classifier":
        return (
            "its handler image_classifier becomes parameters: shorter side to 256, the middle "
            "224 x 224, ImageNet's mean and deviation, softmax"
        )
    return (
        f"its handler {handler} is left out: say what it does before the model by --input, "
        "--tokenizer and --parameter, or serve it as model.py"
    )
