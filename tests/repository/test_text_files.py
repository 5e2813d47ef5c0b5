"""Text files in whatever encoding: UTF-8 is read as it is meant, the rest named with its line."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import numpy as np
import pytest

from api.payloads.classification import classified
from api.payloads.predictions import describe_rows
from ferry.cli import main
from shared.errors import BadModel
from shared.messages import InferResult, Tensor
from worker.repository.check import check_repository
from worker.repository.models import read_model

CONFIG = """
platform: "pytorch_libtorch"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [4] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [4] label_filename: "labels.txt" } ]
"""
TEXT = """
platform: "pytorch_libtorch"
input [ { name: "input_ids" data_type: TYPE_INT64 dims: [-1] allow_ragged_batch: true } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [4] } ]
max_batch_size: 8
parameters { key: "input_kind" value { string_value: "text" } }
"""
UTF_16 = "expected UTF-8, this is UTF-16 or no text: save it as UTF-8"
LATIN_1 = "expected UTF-8, the byte 0xfc is none (Latin-1 perhaps): save the file as UTF-8"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model directory that is right, of which a test replaces a file."""
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "model.pt").write_bytes(b"model")
    (tmp_path / "m" / "config.pbtxt").write_text(CONFIG)
    (tmp_path / "m" / "labels.txt").write_text("a\nb\nc\nd\n")
    return tmp_path / "m"


def labels(model: Path) -> tuple[str, ...]:
    return read_model(model.parent, "m").spec.outputs[0].labels


def problem(model: Path) -> str:
    """Return why a model is not served; `ferry models check` says the same."""
    with pytest.raises(BadModel) as caught:
        read_model(model.parent, "m")
    assert check_repository(model.parent).problems == [caught.value.message]
    return caught.value.message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a\nb\nc\nd", ("a", "b", "c", "d")),
        (b"a\r\nb\r\nc\r\nd\r\n", ("a", "b", "c", "d")),
        (codecs.BOM_UTF8 + "ä\nb\n".encode(), ("ä", "b")),
        (b"\n\nc\n\n", ("", "", "c", "")),
        (b"a\r\n\r\nc\r\n", ("a", "", "c")),
        (b" a \n\t\nc", ("a", "", "c")),
        (b"\n", ("",)),
        (b"", ()),
        (codecs.BOM_UTF8, ()),
        (
            "a\u2028b\nc\u2029\nd\x85e\nf\x0bg\x0ch".encode(),
            ("a\u2028b", "c\u2029", "d\x85e", "f\x0bg\x0ch"),
        ),
        ("a\x1cb\x1dc\x1ed\n\u3000e\xa0\n".encode(), ("a\x1cb\x1dc\x1ed", "\u3000e\xa0")),
        (b"a\rb\nc", ("a\rb", "c")),
    ],
)
def test_labels_stand_between_line_feeds(
    model: Path, content: bytes, expected: tuple[str, ...]
) -> None:
    (model / "labels.txt").write_bytes(content)

    assert labels(model) == expected


def test_a_class_without_a_label_has_its_number_and_the_next_its_own_label(model: Path) -> None:
    (model / "labels.txt").write_text("a\n\nc\n")
    spec = read_model(model.parent, "m").spec
    scores = Tensor.of("y", np.array([[0.1, 0.2, 0.3, 0.4]], np.float32))

    [row] = describe_rows(spec, InferResult(outputs=(scores,)), 4)
    classes = classified(scores, 4, spec).array().reshape(-1).tolist()

    assert [each["label"] for each in row["top_k"]] == ["3", "c", "1", "a"]
    assert classes == [b"0.400000:3", b"0.300000:2:c", b"0.200000:1", b"0.100000:0:a"]
    assert check_repository(model.parent).notes[1:] == [
        f"{model}/config.pbtxt: output[y].label_filename has an empty line 2: class 1 is called "
        "by its number"
    ]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("file", ["labels.txt", "config.pbtxt"])
def test_a_file_in_utf_16_is_named(model: Path, file: str, encoding: str) -> None:
    text = (model / file).read_text()
    (model / file).write_text(text, encoding=encoding)

    assert problem(model) == f"{model}/{file}: {UTF_16}"


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize(
    ("file", "text", "line"),
    [
        ("labels.txt", "M\xfcnchen\n", 1),
        ("labels.txt", "a\r\nb\r\nK\xf6ln".replace("\xf6", "\xfc"), 3),
        ("config.pbtxt", f"# a model\n# f\xfcr Bilder\n{CONFIG}", 2),
    ],
)
def test_a_file_in_latin_1_is_named_with_the_line(
    model: Path, file: str, text: str, line: int, mark: bytes
) -> None:
    (model / file).write_bytes(mark + text.encode("latin-1"))

    assert problem(model) == f"{model}/{file}, line {line}: {LATIN_1}"


@pytest.mark.parametrize(
    "content",
    [
        codecs.BOM_UTF8 + CONFIG.encode(),
        CONFIG.replace("\n", "\r\n").encode(),
        ("# f\xfcr\u2028alle\n" + CONFIG.replace("\n", "\r")).encode(),
        CONFIG.replace('"y"', '"y"\u2028\xa0').encode(),
    ],
)
def test_a_config_is_read_as_it_is_meant(model: Path, content: bytes) -> None:
    (model / "config.pbtxt").write_bytes(content)

    assert labels(model) == ("a", "b", "c", "d")


def test_a_mistake_in_a_config_keeps_its_line(model: Path) -> None:
    (model / "config.pbtxt").write_bytes(codecs.BOM_UTF8 + b"# one\r\n\r\nmax_batch_size: many\r\n")

    assert problem(model).startswith(f"{model}/config.pbtxt: 3:17 : ")


def test_a_tokenizer_is_kept_without_its_mark(model: Path) -> None:
    (model / "config.pbtxt").write_text(TEXT)
    (model / "tokenizer.json").write_bytes(codecs.BOM_UTF8 + '{"model": {"ä": 1}}'.encode())

    assert read_model(model.parent, "m").asset == '{"model": {"ä": 1}}'.encode()


def test_a_tokenizer_in_another_encoding_is_named(model: Path) -> None:
    (model / "config.pbtxt").write_text(TEXT)
    (model / "tokenizer.json").write_bytes('{\n"ü": 1}'.encode("latin-1"))

    assert problem(model) == f"{model}/tokenizer.json, line 2: {LATIN_1}"


def test_a_configuration_given_with_load_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "changed.json").write_text("{}", encoding="utf-16")

    assert main(["models", "load", "m", "--config", str(tmp_path / "changed.json")]) == 1
    assert capsys.readouterr().err == f"ferry: {tmp_path}/changed.json: {UTF_16}\n"


def test_a_mark_before_an_override_is_none_of_it(model: Path) -> None:
    tensors = {
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}],
        "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [4]}],
    }
    override = json.dumps(tensors | {"max_batch_size": 3, "platform": "pytorch_libtorch"})

    config = read_model(model.parent, "m", override=f"\ufeff{override}")

    assert config.spec.max_batch_size == 3


def test_labels_that_are_missing_are_named(model: Path) -> None:
    (model / "labels.txt").unlink()

    assert problem(model) == f"{model}/labels.txt: no such file"
