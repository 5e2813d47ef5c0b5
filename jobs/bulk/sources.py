"""What a bulk job reads, one item after another, in constant memory.

    FOLDER/**/*.jpg, pictures.zip   a picture each, in the order of their paths
    rows.csv, rows.tsv              a line of names, then an item a line
    rows.ndjson, rows.jsonl         a JSON object, text or list of numbers a line
    rows.parquet                    a row each, where pyarrow is installed

An item that cannot be read is one with an error, and those behind it are read all the same:
whatever a decoder raises of one is that item's.
"""

from __future__ import annotations

import codecs
import csv
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from hashlib import blake2b
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import orjson

from shared.errors import BadRequest
from shared.inputs.tables import PICTURE_ENDINGS

MAX_PICTURE_BYTES = MAX_LINE_BYTES = 64 * 2**20
PARQUET_ROWS = 1024
"""Rows that are read at once."""
BYTES_AT_ONCE = 1 << 20
LINE_ENDS = ("\n", "\r")


class Item(NamedTuple):
    """One row: its columns, or why there are none. `source` says where it stands in the input.

    `whole` is what stands there without a name: a picture's bytes, a text, a list of numbers.
    """

    source: str
    columns: Mapping[str, Any] = {}
    whole: Any = None
    error: str = ""


class Source(NamedTuple):
    """The items of a file or folder, and how many there are about (blank lines are none).

    `state` is another one once the input was changed: files' names, sizes and times.
    """

    items: Callable[[], Iterator[Item]]
    total: int
    state: str = ""

    def behind(self, number: int) -> Iterator[Item]:
        """Yield the items without the first `number`."""
        return islice(self.items(), number, None)


def open_source(path: Path, within: Path | None = None) -> Source:
    """Return a path's items; raises BadRequest naming what is wrong with it.

    Pictures of a folder that lie outside of `within`, by links, are items with an error.
    """
    if path.is_dir():
        return _folder(path, within)
    if not path.exists():
        raise BadRequest(f"{path}: no such file or folder")
    opener = READERS.get(path.suffix.lower())
    if opener is None:
        raise BadRequest(
            f"{path}: expected a folder of pictures or one of {', '.join(sorted(READERS))}"
        )
    try:
        return opener(path)._replace(state=_state([path], path.parent))
    except Exception as error:  # a border: decoders raise classes of their own for damaged files
        raise BadRequest(f"{path}: {_why(error)}") from error


def read_picture(file: Path) -> bytes:
    """Return a picture's bytes; raises ValueError for a pipe or a large file, and OSError."""
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no file")
    _check_size(found.st_size)
    return file.read_bytes()


def _check_size(size: int) -> None:
    if size > MAX_PICTURE_BYTES:
        raise ValueError(f"{size} bytes, a picture has at most {MAX_PICTURE_BYTES}")


def _why(error: Exception) -> str:
    """Return an exception's text, of those without one the class."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return text or type(error).__name__


def _folder(path: Path, within: Path | None) -> Source:
    files = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in PICTURE_ENDINGS and not file.name.startswith(".")
    )
    if not files:
        raise BadRequest(f"{path}: there are no pictures in it")

    def items() -> Iterator[Item]:
        for file in files:
            name = str(file.relative_to(path))
            try:
                if within is not None and not file.resolve().is_relative_to(within.resolve()):
                    yield Item(name, error="it lies outside of the folder that may be read")
                else:
                    yield Item(name, whole=read_picture(file))
            except (OSError, ValueError, RuntimeError) as error:  # the last of links in a circle
                yield Item(name, error=f"cannot be read: {_why(error)}")

    return Source(items, len(files), _state(files, path))


def _state(files: Iterable[Path], folder: Path) -> str:
    digest = blake2b(digest_size=16)
    for file in files:
        found = file.stat() if file.exists() else file.lstat()  # a link may lead nowhere
        name = str(file.relative_to(folder))
        digest.update(f"{name}\0{found.st_size}\0{found.st_mtime_ns}\n".encode(errors="replace"))
    return digest.hexdigest()


def _zip(path: Path) -> Source:
    with zipfile.ZipFile(path) as archive:
        members = [
            each for each in archive.infolist()
            if Path(each.filename).suffix.lower() in PICTURE_ENDINGS and not each.is_dir()
        ]  # fmt: skip
    if not members:
        raise ValueError("there are no pictures in it")

    def items() -> Iterator[Item]:
        with zipfile.ZipFile(path) as opened:
            for member in members:
                try:
                    _check_size(member.file_size)
                    yield Item(member.filename, whole=opened.read(member))
                # a border: encrypted, of an unknown method, or damaged, for which each method's
                # decoder has classes of its own; the item is answered with an error
                except Exception as error:
                    yield Item(member.filename, error=f"cannot be read: {_why(error)}")

    return Source(items, len(members))


def _csv(path: Path) -> Source:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    first = next(_lines_of(path, delimiter), None)
    if not isinstance(first, list) or not first:
        raise ValueError("there is no line of names in it")
    names = [name.strip() for name in first]

    def items() -> Iterator[Item]:
        lines = _lines_of(path, delimiter)
        next(lines)
        for number, line in enumerate((line for line in lines if line), 1):
            yield _row(f"row {number}", names, line)

    return Source(items, sum(1 for line in _lines_of(path, delimiter) if line) - 1)


def _lines_of(path: Path, delimiter: str) -> Iterator[list[str] | csv.Error]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        reader = csv.reader(iter(partial(_line, stream), ""), delimiter=delimiter)
        while True:
            try:
                yield next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield error


def _line(stream: TextIO) -> str:
    """Return the next line, an empty text behind the last; raises csv.Error for a long one."""
    line = stream.readline(MAX_LINE_BYTES)
    if len(line) < MAX_LINE_BYTES or line.endswith(LINE_ENDS):
        return line
    while line and not line.endswith(LINE_ENDS):
        line = stream.readline(MAX_LINE_BYTES)
    raise csv.Error(f"it is above {MAX_LINE_BYTES} characters")


def _row(source: str, names: list[str], line: list[str] | csv.Error) -> Item:
    if isinstance(line, csv.Error):
        return Item(source, error=f"it cannot be read: {line}")
    if len(line) != len(names):
        return Item(source, error=f"it has {len(line)} fields, the first line has {len(names)}")
    try:
        "".join(line).encode()
    except UnicodeEncodeError:
        return Item(source, error="it is not UTF-8")
    return Item(source, dict(zip(names, line, strict=True)))


def _ndjson(path: Path) -> Source:
    count = 0
    with path.open("rb") as stream:
        while block := stream.read(BYTES_AT_ONCE):
            count += block.count(b"\n")

    def items() -> Iterator[Item]:
        with path.open("rb") as lines:
            number = 0
            while line := lines.readline(MAX_LINE_BYTES):
                number += 1
                is_whole = line.endswith(b"\n") or len(line) < MAX_LINE_BYTES
                while not is_whole:
                    is_whole = lines.readline(MAX_LINE_BYTES)[-1:] in (b"\n", b"")
                    line = b""
                if not line:
                    yield Item(f"line {number}", error=f"it is above {MAX_LINE_BYTES} bytes")
                elif line.strip():
                    yield _json(f"line {number}", line)

    return Source(items, count)


def _json(source: str, line: bytes) -> Item:
    try:  # fast: and, as at the door, no NaN, no number beyond a double, no half of a character
        value = orjson.loads(line.removeprefix(codecs.BOM_UTF8))
    except orjson.JSONDecodeError as error:
        return Item(source, error=f"it is no JSON: {error}")
    if isinstance(value, dict):
        return Item(source, value)
    if isinstance(value, str | list):
        return Item(source, whole=value)
    return Item(source, error="expected a JSON object, a text or a list of numbers")


def _parquet(path: Path) -> Source:
    try:
        from pyarrow import parquet  # type: ignore[import-not-found]  # noqa: PLC0415
    except ModuleNotFoundError:
        raise ValueError("reading Parquet needs pyarrow: pip install pyarrow") from None
    count = parquet.ParquetFile(path).metadata.num_rows

    def items() -> Iterator[Item]:
        table = parquet.ParquetFile(path)
        groups = (_rows_of_group(table, group) for group in range(table.num_row_groups))
        for number, row in enumerate(chain.from_iterable(groups), 1):
            if isinstance(row, Exception):
                yield Item(f"row {number}", error=f"it cannot be read: {_why(row)}")
            else:
                yield Item(f"row {number}", row)

    return Source(items, count)


def _rows_of_group(table: Any, group: int) -> Iterator[dict[str, Any] | Exception]:
    """Yield a row group's rows; from a place on that is damaged, why they are not there."""
    left = table.metadata.row_group(group).num_rows
    try:
        for batch in table.iter_batches(PARQUET_ROWS, row_groups=[group]):
            for row in _rows_of(batch):
                left -= 1
                yield row
    except Exception as error:  # a border: each of its rows is answered with an error
        yield from repeat(error, left)


def _rows_of(batch: Any) -> Iterator[dict[str, Any] | Exception]:
    try:
        rows = batch.to_pylist()
    except Exception as error:  # a border: a text that is no UTF-8, or a date beyond Python's
        if batch.num_rows == 1:
            yield error
            return
        for number in range(batch.num_rows):
            yield from _rows_of(batch.slice(number, 1))
    else:
        yield from rows


READERS: Mapping[str, Callable[[Path], Source]] = {
    ".csv": _csv, ".tsv": _csv, ".ndjson": _ndjson, ".jsonl": _ndjson, ".parquet": _parquet,
    ".zip": _zip,
}  # fmt: skip
