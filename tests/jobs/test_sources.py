"""Files and folders as items: in order, one after another, with an error where one is broken."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import pytest

from jobs.bulk.sources import Item, open_source
from shared.errors import BadRequest

END_OF_ARCHIVE = b"PK\x05\x06" + b"\0" * 4 + b"\1\0\1\0\x2e\0\0\0" + b"\0" * 6
"""Behind a directory of one member of 46 bytes."""


def items(path: Path) -> list[Item]:
    return list(open_source(path).items())


def test_a_table_is_a_row_of_columns_a_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes('\ufeffa, b\n1,"x\ny"\n\n2\n3,é\n4,'.encode() + b"\xff\n")

    assert items(file) == [
        Item("row 1", {"a": "1", "b": "x\ny"}),
        Item("row 2", error="it has 1 fields, the first line has 2"),
        Item("row 3", {"a": "3", "b": "é"}),
        Item("row 4", error="it is not UTF-8"),
    ]


def test_a_line_of_json_is_an_object_a_text_or_numbers(tmp_path: Path) -> None:
    file = tmp_path / "rows.ndjson"
    lines = ['{"a": 1}', '"text"', "", "[1, 2]", "7", "{", "[" * 100_000]
    file.write_text("\n".join(lines))

    found = items(file)

    assert found[:3] == [
        Item("line 1", {"a": 1}), Item("line 2", whole="text"), Item("line 4", whole=[1, 2]),
    ]  # fmt: skip
    assert [(item.source, bool(item.error)) for item in found[3:]] == [
        ("line 5", True), ("line 6", True), ("line 7", True),
    ]  # fmt: skip


def test_a_line_above_the_limit_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.bulk.sources.MAX_LINE_BYTES", 16)
    file = tmp_path / "rows.ndjson"
    file.write_text(
        json.dumps("x" * 100) + "\n" + json.dumps("short") + "\n" + json.dumps("y" * 32)
    )

    assert items(file) == [
        Item("line 1", error="it is above 16 bytes"),
        Item("line 2", whole="short"),
        Item("line 3", error="it is above 16 bytes"),
    ]


def test_pictures_of_a_folder_and_of_an_archive(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    (folder / "a").mkdir(parents=True)
    for name in ("b.png", "a/c.JPG", ".hidden.png", "notes.txt"):
        (folder / name).write_bytes(name.encode())
    archive = tmp_path / "pictures.zip"
    with zipfile.ZipFile(archive, "w") as writer:
        for name in ("b.png", "a/c.JPG", "notes.txt"):
            writer.writestr(name, name)

    assert items(folder) == [Item("a/c.JPG", whole=b"a/c.JPG"), Item("b.png", whole=b"b.png")]
    assert items(archive) == [Item("b.png", whole=b"b.png"), Item("a/c.JPG", whole=b"a/c.JPG")]


def test_a_damaged_member_is_an_error_of_its_own(tmp_path: Path) -> None:
    archive = tmp_path / "pictures.zip"
    with zipfile.ZipFile(archive, "w") as writer:
        writer.writestr("a.png", b"first picture")
        writer.writestr("b.png", b"second picture")
    archive.write_bytes(archive.read_bytes().replace(b"first picture", b"other picture"))

    broken, whole = items(archive)

    assert broken.error.startswith("cannot be read: Bad CRC-32")
    assert whole == Item("b.png", whole=b"second picture")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_member_of_any_method_is_an_error_of_its_own(tmp_path: Path, method: int) -> None:
    archive = tmp_path / "pictures.zip"
    with zipfile.ZipFile(archive, "w", method) as writer:
        for name in "abcd":
            writer.writestr(f"{name}.png", os.urandom(2000))
    data = bytearray(archive.read_bytes())
    heads = [data.index(f"{name}.png".encode()) for name in "abcd"]
    data[heads[0] + 5 : heads[0] + 500] = b"\xff" * 495  # the compressed data itself
    data[data.rindex(b"b.png") - 38] |= 1  # it is encrypted, says the directory
    data[heads[2]] = 0xFF  # another name
    archive.write_bytes(data)
    with zipfile.ZipFile(archive) as whole:
        last = whole.read("d.png")

    *broken, sound = items(archive)

    assert [item.source for item in broken] == ["a.png", "b.png", "c.png"]
    assert all(item.error.startswith("cannot be read: ") for item in broken)
    assert all(len(item.error) > len("cannot be read: ") for item in broken)
    assert sound == Item("d.png", whole=last)


def test_what_a_folder_calls_a_picture_may_be_none(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "gone.png").symlink_to("nowhere")
    (folder / "itself.png").symlink_to("itself.png")
    (folder / "sub.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "whole.png").write_bytes(b"picture")

    for within in (None, folder):
        found = {item.source: item for item in open_source(folder, within).items()}

        assert found.pop("whole.png") == Item("whole.png", whole=b"picture")
        assert sorted(found) == ["gone.png", "itself.png", "pipe.png", "sub.png"]
        assert all(item.error.startswith("cannot be read: ") for item in found.values())


@pytest.mark.parametrize(
    "line",
    [
        b'{"a": NaN}', b'{"a": [1, -Infinity]}', b'{"a": 1e400}', b"[" + b"9" * 5000 + b"]",
        b'{"a": "\\ud800"}', b'"\\udc00\\ud800"', b'{"\\ud800": 1}', b'{"a": "\xff"}', b'"\x00"',
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
    ],
)  # fmt: skip
def test_what_the_door_takes_for_no_json_is_none_here(tmp_path: Path, line: bytes) -> None:
    file = tmp_path / "rows.ndjson"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}\n' + line + b'\n{"a": "\\u0000"}')

    first, odd, last = items(file)

    assert (first, last) == (Item("line 1", {"a": 1}), Item("line 3", {"a": "\0"}))
    assert odd.error.startswith("it is no JSON: ")


def test_a_line_of_a_table_above_the_limit_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.bulk.sources.MAX_LINE_BYTES", 16)
    file = tmp_path / "rows.csv"
    file.write_text(f"a,b\n1,2\n{'x,' * 30}\n3,\x004\n{'y' * 50}")

    assert items(file) == [
        Item("row 1", {"a": "1", "b": "2"}),
        Item("row 2", error="it cannot be read: it is above 16 characters"),
        Item("row 3", {"a": "3", "b": "\x004"}),
        Item("row 4", error="it cannot be read: it is above 16 characters"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("rows.csv", b"", "no line of names"),
        ("rows.zip", b"no archive", "not a zip"),
        ("rows.zip", b"PK\x01\x02\x14\0\xff" + b"\0" * 39 + END_OF_ARCHIVE, "file version 25.5"),
        ("rows.xlsx", b"", "expected a folder of pictures or one of .csv"),
    ],
)
def test_what_is_no_input_is_said(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadRequest, match=f"{name}: .*{says}"):
        open_source(tmp_path / name)
