"""Tells archives and compressed files apart: torch's zip files, Keras's, joblib's, and others."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from worker.repository.file_kinds import (
    AOTI,
    KERAS,
    NUMPY,
    OLD_TORCH,
    TORCH_EXPORT,
    TORCH_PACKAGE,
    TORCHSCRIPT,
    FileKind,
    archive,
    cut_off,
)
from worker.repository.pickled_kinds import plain_pickle, torch_pickle

MACHINE_CODE = "data/aotinductor/"
EXPORTED = ("/models/model.json", "serialized_exported_program.json", "/archive_format")
MAX_MEMBERS = 20
MAX_INFLATED_BYTES = 8 << 20
"""Of a compressed file that is looked at."""
UNPICKLED_STARTS = (b"\x80", b"(", b"c")


def zip_kind(file: Path) -> FileKind:
    """Return the kind of a file that begins as a zip archive."""
    try:
        with zipfile.ZipFile(file) as opened:
            return _zip_kind(opened)
    except RecursionError:
        raise  # a RuntimeError, which others here are
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        ValueError,
        NotImplementedError,
        RuntimeError,
    ):
        return cut_off("a zip archive")


def _zip_kind(opened: zipfile.ZipFile) -> FileKind:
    names = opened.namelist()
    for is_it, kind in ZIP_KINDS:
        if is_it({*names}):
            return kind
    if entry := next((name for name in names if name.partition("/")[2] == "data.pkl"), None):
        with opened.open(entry) as stream:
            return torch_pickle(stream)
    if "MAR-INF/MANIFEST.json" in names:
        models = [name for name in names if not name.startswith("MAR-INF/")]
        return archive("a TorchServe archive (.mar)", models)
    return archive("a zip archive", names)


def _has(*wanted: str) -> Callable[[set[str]], bool]:
    """Return a test for names of entries below the one folder in which torch puts all of them."""
    return lambda names: {*wanted} <= {name.partition("/")[2] for name in names}


ZIP_KINDS: tuple[tuple[Callable[[set[str]], bool], FileKind], ...] = (
    (lambda names: any(MACHINE_CODE in name for name in names), AOTI),
    (lambda names: any(f"/{name}".endswith(EXPORTED) for name in names), TORCH_EXPORT),
    (_has("constants.pkl", "data.pkl"), TORCHSCRIPT),
    (_has(".data/extern_modules"), TORCH_PACKAGE),
    (lambda names: {"config.json", "metadata.json"} <= names, KERAS),
    (lambda names: bool(names) and all(name.endswith(".npy") for name in names), NUMPY),
)
"""The kinds of zip archives that the names in them tell, the first that fits."""


def tar_kind(stream: IO[bytes], what: str) -> FileKind:
    """Return the kind of a tar archive, `what` names it with its compression."""
    names: list[str] = []
    try:
        with tarfile.open(fileobj=stream, mode="r|") as opened:
            while len(names) < MAX_MEMBERS and (member := opened.next()) is not None:
                names.append(member.name)
    except (tarfile.TarError, EOFError, OSError):
        return archive(what, names) if names else cut_off(what)
    return OLD_TORCH if {"pickle", "storages"} <= {*names} else archive(what, names)


def compressed_kind(file: Path, head: bytes) -> FileKind | None:
    """Return the kind of a compressed file by what is in it; None for one that is not compressed.

    joblib reads pickles that are compressed whole, in each of these ways.
    """
    for start, name, opened in COMPRESSIONS:
        if head.startswith(start):
            return _inflated_kind(file, name, opened)
    return None


def _inflated_kind(
    file: Path, name: str, opened: Callable[[Path], IO[bytes]] | None
) -> FileKind | None:
    if opened is None:
        if name == "lz4":
            return FileKind("joblib", "a pickle compressed by lz4", "joblib")
        return archive(f"a file compressed by {name}", [])
    try:
        with opened(file) as stream:
            content = stream.read(MAX_INFLATED_BYTES)
    except (OSError, EOFError, zlib.error, lzma.LZMAError):
        # Two bytes begin a zlib stream, and many other files.
        return None if name == "zlib" else cut_off(f"a file compressed by {name}")
    if content[257:262] == b"ustar":
        return tar_kind(io.BytesIO(content), f"a tar archive compressed by {name}")
    if content.startswith(UNPICKLED_STARTS):
        found = plain_pickle(_Endless(content), f" compressed by {name}")
        if found.name != "unknown":
            return found
    return archive(f"a file compressed by {name}", [file.stem])


class _Endless(io.BytesIO):
    """The beginning of a pickle; what is not there counts as not read, not as cut off."""

    def read(self, size: int | None = -1) -> bytes:
        found = super().read(size)
        if size is not None and len(found) < size and self._is_full():
            raise OSError("read as far as it is looked at")
        return found

    def _is_full(self) -> bool:
        return self.getbuffer().nbytes >= MAX_INFLATED_BYTES


def _zlib(file: Path) -> IO[bytes]:
    with file.open("rb") as stream:
        packed = stream.read(MAX_INFLATED_BYTES)
    return io.BytesIO(zlib.decompressobj().decompress(packed, MAX_INFLATED_BYTES))


def _opener(function: Any) -> Callable[[Path], IO[bytes]]:
    return lambda file: function(file, "rb")


COMPRESSIONS: tuple[tuple[bytes, str, Callable[[Path], IO[bytes]] | None], ...] = (
    (b"\x1f\x8b", "gzip", _opener(gzip.open)),
    (b"BZh", "bzip2", _opener(bz2.open)),
    (b"\xfd7zXZ\x00", "xz", _opener(lzma.open)),
    (b"\x5d\x00\x00", "lzma", _opener(lzma.open)),
    (b"\x78", "zlib", _zlib),
    (b"\x04\x22\x4d\x18", "lz4", None),
    (b"\x28\xb5\x2f\xfd", "zstd", None),
    (b"7z\xbc\xaf\x27\x1c", "7-Zip", None),
    (b"Rar!", "RAR", None),
)
