"""Files of real rows: what stands in them, as the model's own clients would send it.

    FOLDER/<class>/*.jpg            pictures by class; pictures alone, where there are no folders
    rows.csv, rows.tsv              a line of names, then a row a line
    rows.ndjson, rows.jsonl         a JSON object a line
    rows.parquet                    columns, where pyarrow is installed
    rows.npz                        arrays [rows, ...] by name

Columns are called as the model's inputs; `text`, `image` (a picture's path, from the file's own
folder) and a label (one of LABEL_COLUMNS, or as said) are known too. A single input of numbers may
be all the columns that are no label.
"""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shared.datatypes import Array
from shared.drift.answers import scored_output
from shared.errors import BadModel
from shared.inputs.tables import (
    MAX_COLUMNS,
    PICTURE_COLUMNS,
    PICTURE_ENDINGS,
    TEXT_COLUMNS,
    Column,
    declared_inputs,
    only_column,
    shaped_rows,
)
from shared.model_spec import ModelSpec
from worker.optimise.rows import Batch, Rows, array_rows, picture_rows, text_rows

LABEL_COLUMNS = ("label", "labels", "class", "target", "y")


class _Table(NamedTuple):
    """Columns by name, all of one length, and the file that they are of."""

    columns: dict[str, Column]
    file: Path


def read_data(path: Path, spec: ModelSpec, tokenizer: bytes | None = None, label: str = "") -> Rows:
    """Return the rows in a file or folder; raises BadModel naming file and column.

    `label` names the column of labels. Rows are in the order of the file; pictures are decoded
    when they are taken.
    """
    if not path.exists():
        raise BadModel(f"--data {path}: no such file or folder")
    try:
        rows = _read(path, spec, tokenizer, label)
    except (ValueError, OSError, KeyError, zipfile.BadZipFile) as error:
        raise BadModel(f"--data {path}: {error}") from error
    if rows.count == 0:
        raise BadModel(f"--data {path}: there are no rows in it")
    return rows


def _read(path: Path, spec: ModelSpec, tokenizer: bytes | None, label: str) -> Rows:
    if path.is_dir():
        return _folder(path, spec)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"expected a folder of pictures or one of {', '.join(sorted(READERS))}")
    columns = reader(path)
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the columns differ in length: {lengths}")
    if not columns or 0 in lengths.values():
        raise ValueError("there are no rows in it")
    return _rows(_Table(columns, path), spec, tokenizer, label)


def _folder(path: Path, spec: ModelSpec) -> Rows:
    """Return the pictures of a folder, by class where its folders are classes."""
    if spec.image is None:
        raise ValueError(f"a folder holds pictures, and {spec.name!r} takes none")
    folders = sorted(each for each in path.iterdir() if each.is_dir() and each.name[0] != ".")
    if not folders:
        files = _pictures(path)
        return Rows(len(files), picture_rows(files, spec), None, str(path))
    files, names = [], []
    for folder in folders:
        found = _pictures(folder)
        files += found
        names += [folder.name] * len(found)
    return Rows(
        len(files), picture_rows(files, spec), _class_numbers(names, spec, "the folder"), str(path)
    )


def _pictures(folder: Path) -> list[Path]:
    return sorted(
        each
        for each in folder.rglob("*")
        if each.suffix.lower() in PICTURE_ENDINGS and not each.name.startswith(".")
    )


def _csv(path: Path) -> dict[str, Column]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open(encoding="utf-8-sig", newline="") as stream:
        lines = list(csv.reader(stream, delimiter=delimiter))
    if not lines:
        return {}
    names, found = lines[0], [line for line in lines[1:] if line]
    for number, line in enumerate(found, 2):
        if len(line) != len(names):
            raise ValueError(f"line {number} has {len(line)} fields, the first has {len(names)}")
    return {name.strip(): [line[at] for line in found] for at, name in enumerate(names)}


def _ndjson(path: Path) -> dict[str, Column]:
    found: dict[str, list[Any]] = {}
    with path.open(encoding="utf-8-sig") as stream:
        lines = [(number, line) for number, line in enumerate(stream, 1) if line.strip()]
    for at, (number, line) in enumerate(lines):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number}: expected a JSON object")
        if at and row.keys() != found.keys():
            odd = sorted(row.keys() ^ found.keys())
            raise ValueError(f"line {number}: it differs from the first by {odd}")
        for name, value in row.items():
            found.setdefault(name, []).append(value)
    return dict(found)


def _parquet(path: Path) -> dict[str, Column]:
    try:
        from pyarrow import parquet  # type: ignore[import-not-found]  # noqa: PLC0415
    except ModuleNotFoundError:
        raise ValueError("reading Parquet needs pyarrow: pip install pyarrow") from None
    found: dict[str, Column] = parquet.read_table(path).to_pydict()
    return found


def _npz(path: Path) -> dict[str, Column]:
    if not zipfile.is_zipfile(path):
        raise ValueError("no npz archive")
    # A stream of ours, for numpy leaves its own open where the archive is damaged.
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
        found = {name: archive[name] for name in archive.files}
    flat = [name for name, array in found.items() if array.ndim == 0]
    if flat:
        raise ValueError(f"array {flat[0]!r} is a single number, expected [rows, ...]")
    return found


READERS: Mapping[str, Callable[[Path], dict[str, Column]]] = {
    ".csv": _csv, ".tsv": _csv, ".ndjson": _ndjson, ".jsonl": _ndjson, ".parquet": _parquet,
    ".npz": _npz,
}  # fmt: skip


def _rows(table: _Table, spec: ModelSpec, tokenizer: bytes | None, label: str) -> Rows:
    columns = dict(table.columns)
    label = _label_column(columns, spec, label)
    named = columns.pop(label) if label else None
    if not columns:
        raise ValueError(f"there is nothing beside the labels {label!r}")
    count = len(next(iter(columns.values())))
    labels = None
    if named is not None:
        labels = _class_numbers(named, spec, f"column {label!r}")
    source = str(table.file)
    if spec.input_kind == "text" and (text := only_column(columns, TEXT_COLUMNS, spec)) is not None:
        texts = [each if isinstance(each, str) else str(each) for each in columns[text]]
        return Rows(count, text_rows(texts, spec, tokenizer), labels, source)
    if spec.image is not None:
        return Rows(count, _picture_column(table, columns, spec), labels, source)
    return Rows(count, array_rows(declared_inputs(columns, spec), spec), labels, source)


def _label_column(columns: Mapping[str, Column], spec: ModelSpec, label: str) -> str:
    if label and label not in columns:
        raise ValueError(f"--label {label}: there is no such column among {sorted(columns)}")
    known = (name for name in columns if name.lower() in LABEL_COLUMNS)
    return label or next((name for name in known if name not in spec.inputs_by_name), "")


def _beside(file: Path, name: str) -> Path:
    """Return a picture that a table names; raises ValueError when it leads out of its folder."""
    found = file.parent / name
    if not found.resolve().is_relative_to(file.parent.resolve()):
        raise ValueError(f"{name!r} lies outside of the file's folder")
    return found


def _picture_column(
    table: _Table, columns: Mapping[str, Column], spec: ModelSpec
) -> Callable[[Sequence[int]], Batch]:
    """Return how to take rows of pictures: of files, of pixels, or of the input as it is."""
    image = spec.image
    assert image is not None, "only asked of models that take pictures"
    name = only_column(columns, PICTURE_COLUMNS, spec)
    if name is None:
        raise ValueError(f"there is no column {PICTURE_COLUMNS[0]!r} among {sorted(columns)}")
    column = columns[name]
    if not isinstance(column, np.ndarray) and isinstance(column[0], str):
        return picture_rows([_beside(table.file, each) for each in column], spec)
    array = np.asarray(column)
    if array.dtype == np.uint8 and array.shape[1:] == (
        image.height, image.width, len(image.channels)
    ):  # fmt: skip
        return array_rows({image.input: array}, spec, frozenset({image.input}))
    return array_rows({image.input: shaped_rows(array, spec.inputs[0])}, spec)


def _class_numbers(named: Column, spec: ModelSpec, where: str) -> Array:
    """Return each row's class: by the output's label, else by its number; raises ValueError."""
    scored = scored_output(spec)
    if scored is None:
        raise ValueError(f"{where} has labels, and no output of {spec.name!r} names a class")
    texts = [each.decode() if isinstance(each, bytes) else str(each) for each in named]
    by_name = {name: number for number, name in enumerate(scored.labels)}
    if set(texts) <= by_name.keys():
        return np.array([by_name[text] for text in texts], np.int64)
    count = max([1, *scored.dims])
    try:
        numbers = np.array([float(text) for text in texts])
    except ValueError:
        odd = next(text for text in texts if text not in by_name)
        names = ", ".join([*scored.labels][:MAX_COLUMNS]) or f"0 to {count - 1}"
        raise ValueError(f"{where}: {odd!r} is no class of {spec.name!r} ({names} ...)") from None
    whole = numbers.astype(np.int64)
    limit = count if count > 1 else np.inf
    wrong = (numbers != whole) | (whole < 0) | (whole >= limit)
    if wrong.any():
        odd, below = texts[int(np.argmax(wrong))], f" below {count}" if count > 1 else ""
        raise ValueError(f"{where}: {odd!r} is no class, expected a whole number{below}")
    return whole
