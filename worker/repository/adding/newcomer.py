"""Files that are to become a version of a model: told apart, named, and which belong together.

`worker.repository.adding.staging` has them tried and copied.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from shared.errors import BadModel
from shared.names import MODEL_NAME, VERSION
from worker.repository.adding.wishes import Wishes
from worker.repository.config.formats import BY_BACKEND, FORMATS
from worker.repository.file_kinds import PICKLES, RUN_CODE, FileKind, code_refusal
from worker.repository.model_config import read_message
from worker.repository.sniffer import what_is

LONGEST_NAME = 128
CONFIG_FILE, LABEL_FILE, TOKENIZER_FILE = "config.pbtxt", "labels.txt", "tokenizer.json"
EXTERNAL_DATA = re.compile(rb"\n\x08location\x12([\x80-\xff]*[\0-\x7f])")
"""An entry of ONNX's TensorProto.external_data, up to the length of the file's name."""
ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")


@dataclass(frozen=True)
class Newcomer:
    """What is to become `name`/`version`: the file or directory that was named, and its parts.

    `files` go into the version's directory and `beside` into the model's, by their name there.
    `filename` is the model file's. `exists` tells that the repository has the model already.
    """

    source: Path
    name: str
    version: str
    kind: FileKind
    filename: str
    files: Mapping[str, Path]
    beside: Mapping[str, Path]
    wishes: Wishes
    exists: bool

    @property
    def file(self) -> Path:
        """Return the model's file where it lies now."""
        return self.files[self.filename]

    def later(self, count: int) -> Newcomer:
        """Return the same as a version behind `count` others that are about to be added."""
        number = int(self.version) + count
        return replace(self, version=str(number), exists=self.exists or count > 0)


def model_name(source: Path) -> str:
    """Return the name of a file without its ending, made a valid name of a model."""
    stem = source.name if source.is_dir() else source.name.rpartition(".")[0] or source.name
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", stem).strip("_.-")
    return name[:LONGEST_NAME] or "model"


def newcomer(
    repository: Path, source: Path, name: str, wishes: Wishes, *, trusted: Collection[str]
) -> Newcomer:
    """Look at a file or directory; raises BadModel saying why it is no model, or what is missing.

    Nothing is loaded and nothing written.
    """
    if not MODEL_NAME.fullmatch(name):
        raise BadModel(
            f"--name {name!r} must be letters, digits, '_', '.' and '-', begin with none of the "
            f"last two, and have at most {LONGEST_NAME} characters"
        )
    if ADDRESS.match(str(source)) and not source.exists():
        address = ADDRESS.sub(r"\1://", str(source))  # a Path has one slash in place of two
        raise BadModel(
            f"{address} is an address, and Ferry fetches nothing: download the file and name that"
        )
    file, files, beside = _parts(source)
    kind = what_is(file)
    if not kind.backend:
        raise BadModel(f"{source}: {_not_a_model(source, file, kind)}")
    if kind.backend in RUN_CODE and kind.backend not in trusted:
        raise BadModel(f"{source}: {code_refusal(kind)}")
    directory = repository / name
    exists = directory.is_dir() and any(directory.iterdir())
    filename = _configured(directory) or _filename(file, kind, source.is_dir())
    files = {(filename if path == file else key): path for key, path in files.items()}
    if kind.backend == "torch_state_dict":
        files |= _architecture(source, wishes)
    if kind.backend in PICKLES and not source.is_dir():
        files |= _imported(source, kind)
    beside = {**beside, **_wished_files(wishes)}
    version = 1 + max((int(each.name) for each in version_directories(directory)), default=0)
    return Newcomer(source, name, str(version), kind, filename, files, beside, wishes, exists)


def version_directories(directory: Path) -> list[Path]:
    """Return the directories of a model that are called by a number."""
    found = directory.iterdir() if directory.is_dir() else ()
    return [each for each in found if each.name.isascii() and each.name.isdigit()]


def _not_a_model(source: Path, file: Path, kind: FileKind) -> str:
    if kind.name == "missing":
        return "no such file"
    if kind.name == "directory":
        models = ", ".join(path.name for path in _models(file))
        return f"it holds several models, name one: {models}" if models else "it holds no model"
    where = "the file" if file == source else f"{file.name} in it"
    return f"{'it' if source.is_dir() and file == source else where} is {kind.sentence}"


def _parts(source: Path) -> tuple[Path, dict[str, Path], dict[str, Path]]:
    """Return the model's file, the files of its version and those of its model, by name.

    A directory is a model's with a config and versions, of which the highest counts, or a
    version's: then everything in it is the version's.
    """
    if not source.is_dir():
        files = {source.name: source}
        return source, files | _external_data(source), {}
    versions = [each for each in version_directories(source) if VERSION.fullmatch(each.name)]
    if not versions:
        return _model_file(source), entries(source), {}
    version = max(versions, key=lambda each: int(each.name))
    beside = {name: path for name, path in entries(source).items() if path not in versions}
    return _model_file(version), entries(version), beside


def entries(directory: Path) -> dict[str, Path]:
    """Return what is in a directory by name, but for hidden files and bytecode."""
    return {
        each.name: each
        for each in sorted(directory.iterdir())
        if not each.name.startswith((".", "__pycache__"))
    }


def _model_file(directory: Path) -> Path:
    """Return the model's file in a directory, or the directory itself when it is unclear."""
    found = entries(directory)
    usual = [name for each in FORMATS for name in each.files]
    if known := [found[name] for name in usual if name in found]:
        return known[0]
    models = _models(directory)
    return models[0] if len(models) == 1 else directory


def _models(directory: Path) -> list[Path]:
    """Return the files in a directory that are models by what is in them, but for code."""
    files = [path for path in entries(directory).values() if path.is_file()]
    return [path for path in files if path.suffix != ".py" and what_is(path).backend]


def _external_data(file: Path) -> dict[str, Path]:
    """Return the files beside an ONNX file, or below, that hold its weights, by relative path."""
    if not file.is_file() or what_is(file).name != "onnx":
        return {}
    content = file.read_bytes()
    names = {
        content[found.end() : found.end() + _varint(found[1])]
        for found in EXTERNAL_DATA.finditer(content)
    }
    paths = [Path(name.decode(errors="replace")) for name in names]
    return {
        str(path): file.parent / path
        for path in paths
        if not path.is_absolute() and ".." not in path.parts and (file.parent / path).is_file()
    }


def _varint(raw: bytes) -> int:
    """Return the number that protobuf wrote: seven bits in a byte, the lowest first."""
    return sum((byte & 0x7F) << 7 * index for index, byte in enumerate(raw))


def _configured(model: Path) -> str:
    """Return the `default_model_filename` of a model that is there."""
    if not (model / CONFIG_FILE).is_file():
        return ""
    filename: str = read_message(model / CONFIG_FILE).default_model_filename
    return filename


def _filename(file: Path, kind: FileKind, is_directory: bool) -> str:
    """Return the name that a model's file gets, one by which its format is known."""
    if is_directory or kind.name == "ort":
        return file.name if is_directory else "model.ort"
    known = BY_BACKEND[kind.backend].files
    same = [name for name in known if name.endswith(file.suffix or "?")]
    if kind.name == "safetensors":
        return "model.safetensors"
    return (same or list(known))[-1 if kind.backend == "torch_state_dict" else 0]


def _architecture(source: Path, wishes: Wishes) -> dict[str, Path]:
    """Return the file or package beside `source`, or here, that makes a state dict's module."""
    if not wishes.architecture and source.is_dir():
        return {}
    if not wishes.architecture:
        raise BadModel(
            f"{source}: the file has weights only: name the code that makes their module with "
            "--architecture module:callable"
        )
    top = wishes.architecture.partition(":")[0].partition(".")[0]
    for directory in (source.parent, Path.cwd()):
        for path in (directory / f"{top}.py", directory / top):
            if path.exists():
                return {path.name: path}
    return {}


def _imported(file: Path, kind: FileKind) -> dict[str, Path]:
    """Return the modules beside a pickle that hold its classes, by their names or by their code."""
    own = [each.rpartition(".")[2] for each in kind.classes if each.startswith("__main__.")]
    tops = {each.partition(".")[0] for each in kind.classes}
    found = {}
    for path in file.parent.iterdir():
        is_package = path.is_dir() and (path / "__init__.py").is_file()
        if (path.suffix == ".py" or is_package) and path.stem in tops:
            found[path.name] = path
        elif path.suffix == ".py" and own:
            code = path.read_text(errors="replace")
            if any(re.search(rf"^(?:class|def) {re.escape(name)}\b", code, re.M) for name in own):
                found[path.name] = path
    return found


def _wished_files(wishes: Wishes) -> dict[str, Path]:
    named = {
        "--labels": (LABEL_FILE, wishes.labels), "--tokenizer": (TOKENIZER_FILE, wishes.tokenizer)
    }  # fmt: skip
    for option, (_, path) in named.items():
        if path is not None and not path.is_file():
            raise BadModel(f"{option} {path}: no such file")
    return {name: path for name, path in named.values() if path is not None}
