"""Reads the text files that operators bring: configs, labels, tokenizers."""

from __future__ import annotations

import codecs
from pathlib import Path

from shared.errors import BadModel

WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, a byte order mark left out, line ends as they are.

    Raises BadModel naming the file, and the line where it stops to be UTF-8; OSError as `open`.
    """
    raw = path.read_bytes()
    if raw.startswith(WIDE_MARKS) or b"\0" in raw:
        raise BadModel(f"{path}: expected UTF-8, this is UTF-16 or no text: save it as UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise BadModel(
            f"{path}, line {line}: expected UTF-8, the byte 0x{error.object[error.start]:02x} is "
            "none (Latin-1 perhaps): save the file as UTF-8"
        ) from error


def read_lines(path: Path) -> tuple[str, ...]:
    """Return a file's lines without space around them, as `read_text` reads it.

    Lines end at line feeds alone, not at whatever Unicode has besides. An empty one counts.
    """
    try:
        text = read_text(path)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise BadModel(f"{path}: no such file") from error
    lines = text.removesuffix("\n").split("\n") if text else []
    return tuple(line.strip(" \t\r") for line in lines)
