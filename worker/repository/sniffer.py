"""Tells what a file is by what is in it, whatever its name; nothing is unpickled or imported."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from worker.repository.archives import compressed_kind, tar_kind, zip_kind
from worker.repository.file_kinds import (
    CATBOOST,
    EMPTY,
    EXECUTORCH,
    GGUF,
    GIT_LFS,
    HDF5,
    HUGGING_FACE,
    LIGHTGBM,
    MISSING,
    NO_FILE,
    NUMPY,
    ONNX,
    OPENVINO,
    ORT,
    PMML,
    PYTHON,
    SAFETENSORS,
    SAVED_MODEL,
    TENSORFLOW,
    TENSORRT,
    TEXT,
    TFLITE,
    UNKNOWN,
    XGBOOST,
    FileKind,
    cut_off,
    error_page,
)  # fmt: skip
from worker.repository.pickled_kinds import plain_pickle, torch_pickle
from worker.repository.pickles import read_pickle

HEAD_BYTES = 4096
MAX_JSON_BYTES = 1 << 20
LONGEST_TITLE = 80
MAX_FIELDS = 2000
PAGES = ("<!doctype", "<html", "<head", "<?xml", "<error")
"""How texts begin that are told in encodings of old, too."""
ERROR_KEYS = ("error", "message", "detail", "errors", "title")
MAX_HEADER_BYTES = 100 << 20
"""The most that safetensors itself allows for its header."""
ZIP_START, EMPTY_ZIP = b"PK\x03\x04", b"PK\x05\x06"
LEGACY_TORCH = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
"""A pickle of torch's magic number: how torch.save began its files before they were zip archives.
Two more pickles stand before the one of what was saved."""
PICKLES_BEFORE = 3
PROTOCOLS = tuple(bytes([0x80, version]) for version in range(2, 6))
OLD_PICKLE = re.compile(rb"c[A-Za-z_][\w.]*\n[A-Za-z_][\w.]*\n|\(dp|\(lp|\(i|[}\]]q\x00")
"""How pickles of protocols 0 and 1 begin: with a class, a dictionary or a list."""
STARTS = (
    (b"\x89HDF\r\n\x1a\n", HDF5),
    (b"GGUF", GGUF),
    (b"ftrt", TENSORRT),
    (b"ptrt", TENSORRT),
    (b"CBM1", CATBOOST),
    (b"\x93NUMPY", NUMPY),
    (b"tree\n", LIGHTGBM),
    (b"version https://git-lfs", GIT_LFS),
    (b"{L\x00\x00\x00\x00\x00\x00\x00\x07learner", XGBOOST),
)
AT_FOUR = ((b"TFL3", TFLITE), (b"ORTM", ORT), (b"ET1", EXECUTORCH))
"""Marks of flatbuffers, behind the offset of their root."""
OTHERS = (
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"%PDF", "a PDF document"),
    (b"\x7fELF", "a compiled library or program"),
    (b"MZ", "a Windows program"),
)
ONNX_FIELDS = {1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26}
ONNX_GRAPH = 7
"""Field numbers of ModelProto. Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto"""
TENSORFLOW_FIELDS = {1, 2, 3, 4}
"""Field numbers of GraphDef, and of SavedModel, which has two of them."""
CONTINUES = 128
"""The bit of a varint's byte that says that another follows."""


def what_is(file: Path) -> FileKind:
    """Return the kind of a model file, of a directory in its place, or of one that is missing.

    Reads a part of it only; raises OSError when it cannot be read, and nothing else.
    """
    try:
        return _what_is(file)
    except OSError:
        raise
    except Exception:
        # A file may be made to break any reader of it.
        return UNKNOWN


def _what_is(file: Path) -> FileKind:
    if file.is_dir():
        return _directory(file)
    if not file.is_file():
        return MISSING
    size = file.stat().st_size
    if size == 0:
        return EMPTY
    if file.suffix == ".py":
        return PYTHON
    with file.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
    return _binary(file, head, size) or _text(file, head) or _unknown(head)


def _directory(path: Path) -> FileKind:
    names = {entry.name for entry in path.iterdir()}
    if names & {"saved_model.pb", "saved_model.pbtxt"}:
        return SAVED_MODEL
    if "config.json" in names and any(n.endswith((".safetensors", ".bin")) for n in names):
        return HUGGING_FACE
    return NO_FILE


def _binary(file: Path, head: bytes, size: int) -> FileKind | None:
    if head.startswith((ZIP_START, EMPTY_ZIP)):
        return zip_kind(file)
    head = head.removeprefix(codecs.BOM_UTF8)
    for start, kind in STARTS:
        if head.startswith(start):
            return kind
    for mark, kind in AT_FOUR:
        if head[4:].startswith(mark):
            return kind
    if head[257:262] == b"ustar":
        with file.open("rb") as stream:
            return tar_kind(stream, "a tar archive")
    return (
        compressed_kind(file, head)
        or _pickle(file, head)
        or _safetensors(file, head, size)
        or _protobuf(file, head, size)
    )


def _pickle(file: Path, head: bytes) -> FileKind | None:
    with file.open("rb") as stream:
        if head.startswith(LEGACY_TORCH):
            for _ in range(PICKLES_BEFORE):
                read_pickle(stream)
            return torch_pickle(stream)
        if head.startswith(PROTOCOLS):
            return plain_pickle(stream)
        if OLD_PICKLE.match(head):
            found = plain_pickle(stream)
            return None if found.name == "truncated" else found
    return None


def _safetensors(file: Path, head: bytes, size: int) -> FileKind | None:
    """Return the kind by the header's length in 8 bytes, and the JSON behind it."""
    length = int.from_bytes(head[:8], "little")
    if head[8:9] != b"{" or length > MAX_HEADER_BYTES:
        return None
    with file.open("rb") as stream:
        stream.seek(8)
        raw = stream.read(length)
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError):
        return cut_off("a safetensors file") if len(raw) < length else None
    try:
        ends = [each["data_offsets"][1] for key, each in header.items() if key != "__metadata__"]
        is_whole = size >= 8 + length + max(ends, default=0)
    except (KeyError, TypeError, AttributeError, IndexError):
        return None
    return SAFETENSORS if is_whole else cut_off("a safetensors file")


def _protobuf(file: Path, head: bytes, size: int) -> FileKind | None:
    """Tell ONNX and TensorFlow apart by the numbers of their outermost fields."""
    begins_with_version = head.startswith(b"\x08")
    if not begins_with_version and file.suffix != ".pb":
        return None
    with file.open("rb") as stream:
        fields = list(_fields(stream, size))
    numbers = {number for number, _ in fields}
    is_cut = bool(fields) and fields[-1][1] > size
    if begins_with_version and ONNX_GRAPH in numbers and numbers <= ONNX_FIELDS:
        return cut_off("an ONNX model") if is_cut else ONNX
    if file.suffix == ".pb" and numbers and numbers <= TENSORFLOW_FIELDS and not is_cut:
        return SAVED_MODEL if begins_with_version else TENSORFLOW
    return None


def _fields(stream: IO[bytes], size: int) -> Iterator[tuple[int, int]]:
    """Yield number and end of each outermost field of a protobuf message, up to a wrong one.

    Source: https://protobuf.dev/programming-guides/encoding/
    """
    end = 0
    for _ in range(MAX_FIELDS):
        stream.seek(end)
        raw = stream.read(20)
        tag, used = _varint(raw)
        value, more = _varint(raw[used:])
        sizes = {0: more, 1: 8, 2: more + value, 5: 4}
        if not used or tag & 7 not in sizes or not more:
            return
        end += used + sizes[tag & 7]
        yield tag >> 3, end
        if end >= size:
            return


def _varint(raw: bytes) -> tuple[int, int]:
    """Return a number in groups of 7 bits, and how many bytes it takes; 0 bytes when it is none."""
    value = 0
    for index, byte in enumerate(raw[:10]):
        value |= (byte & ~CONTINUES) << (7 * index)
        if byte < CONTINUES:
            return value, index + 1
    return 0, 0


def _text(file: Path, head: bytes) -> FileKind | None:
    """Return the kind of a file that is text from its beginning."""
    text = _decoded(head)
    if text is None:
        return None
    start = text.lstrip("\ufeff \t\r\n")
    if start.startswith("<"):
        return _markup(start)
    return _json(file, start) if start.startswith(("{", "[")) else TEXT


def _markup(start: str) -> FileKind:
    lowered = start.lower()
    for mark, kind in (("<net ", OPENVINO), ("<pmml", PMML)):
        if mark in lowered:
            return kind
    is_page = "<html" in lowered or lowered.startswith("<!doctype html")
    if is_page:
        return error_page("an HTML page", _between(start, "title"))
    return error_page("an XML document", _between(start, "message"))


def _decoded(head: bytes) -> str | None:
    """Return the text that a file begins with, None when it is none."""
    is_wide = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if b"\x00" in head and not is_wide:
        return None
    try:
        # A character may be cut in two where the head ends.
        return codecs.getincrementaldecoder("utf-16" if is_wide else "utf-8")().decode(head)
    except UnicodeDecodeError:
        text = head.decode("latin-1")
        is_page = text.lstrip(" \t\r\n").lower().startswith(PAGES)
        return text if is_page and b"\x00" not in head else None


def _between(text: str, tag: str) -> str:
    found = re.search(rf"<{tag}[^>]*>(.*?)</{tag}>", text, re.DOTALL | re.IGNORECASE)
    return " ".join(found[1].split())[:LONGEST_TITLE] if found else ""


def _json(file: Path, start: str) -> FileKind:
    if '"learner"' in start:
        return XGBOOST
    try:
        with file.open("rb") as stream:
            content = json.loads(stream.read(MAX_JSON_BYTES))
    except (ValueError, RecursionError):
        content = None
    said = ""
    if isinstance(content, dict):
        said = next((content[key] for key in ERROR_KEYS if isinstance(content.get(key), str)), "")
    return error_page("a JSON text", " ".join(said.split())[:LONGEST_TITLE])


def _unknown(head: bytes) -> FileKind:
    what = next((what for start, what in OTHERS if head.startswith(start)), "")
    return UNKNOWN._replace(name="other", what=f"{what}, no model") if what else UNKNOWN
