"""The samples of `model_warmup`: run before the model is ready, named when one fails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_backend import FakeBackend

from shared.datatypes import Array, to_bytes
from shared.errors import BadModel
from worker.instance.warmup import run_samples
from worker.repository.model_config import ModelConfig, read_config

CONFIG = """
platform: "onnxruntime_onnx" max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [-1, 2] },
        { name: "text" data_type: TYPE_STRING dims: [2] },
        { name: "ids" data_type: TYPE_INT64 dims: [1] optional: true } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [-1, 2] } ]
"""
X = "data_type: TYPE_FP32 dims: [3, 2]"
TEXT = "data_type: TYPE_STRING dims: [2]"
ZEROS = f'inputs {{ key: "x" value {{ {X} zero_data: true }} }}'
NO_TEXT = f'inputs {{ key: "text" value {{ {TEXT} zero_data: true }} }}'


def of_file(given: str, name: str) -> str:
    """Have an input of zeros come from a file instead."""
    return given.replace("zero_data: true", f'input_data_file: "{name}"')


def config(tmp_path: Path, warmup: str) -> ModelConfig:
    """Read a config with one sample; the directory may hold files already."""
    (tmp_path / "m" / "warmup").mkdir(parents=True, exist_ok=True)
    (tmp_path / "m" / "config.pbtxt").write_text(f"{CONFIG} model_warmup [ {{ {warmup} }} ]")
    return read_config(tmp_path / "m" / "config.pbtxt", "1")


def passes(read: ModelConfig) -> list[dict[str, Array]]:
    backend = FakeBackend()
    run_samples(read.spec, backend, read.warmup)
    return backend.passes


def test_a_sample_is_one_row_repeated_and_run_as_often_as_it_says(tmp_path: Path) -> None:
    ran = passes(config(tmp_path, f'name: "s" batch_size: 4 count: 3 {ZEROS} {NO_TEXT}'))

    assert len(ran) == 3
    assert ran[0]["x"].shape == (4, 3, 2)
    assert not ran[0]["x"].any()
    assert ran[0]["text"].tolist() == [[b"", b""]] * 4
    assert set(ran[0]) == {"x", "text"}


def test_a_count_left_out_is_once(tmp_path: Path) -> None:
    assert len(passes(config(tmp_path, f"batch_size: 1 {ZEROS} {NO_TEXT}"))) == 1


def test_random_data_fits_every_datatype_and_is_the_same_at_every_start(tmp_path: Path) -> None:
    inputs = "".join(
        f'inputs {{ key: "{name}" value {{ {shape} random_data: true }} }}'
        for name, shape in (("x", X), ("text", TEXT), ("ids", "data_type: TYPE_INT64 dims: [1]"))
    )

    [first], [second] = (passes(config(tmp_path, f"batch_size: 2 {inputs}")) for _ in range(2))

    assert first["x"].dtype == np.float32
    assert 0 <= first["x"].min() < first["x"].max() < 1
    assert set(first["ids"].ravel().tolist()) <= {0, 1}
    assert all(isinstance(word, bytes) and word for word in first["text"].ravel())
    assert all((first[name] == second[name]).all() for name in first)


def test_files_hold_one_row_as_binary_tensor_data(tmp_path: Path) -> None:
    (tmp_path / "m" / "warmup").mkdir(parents=True)
    row = np.arange(6, dtype=np.float32).reshape(3, 2)
    (tmp_path / "m" / "warmup" / "x.bin").write_bytes(row.tobytes())
    words = np.array([b"one", "zwölf".encode()], object)
    (tmp_path / "m" / "warmup" / "words").write_bytes(to_bytes(words))

    [ran] = passes(
        config(
            tmp_path,
            f'batch_size: 2 inputs {{ key: "x" value {{ {X} input_data_file: "x.bin" }} }}'
            f'inputs {{ key: "text" value {{ {TEXT} input_data_file: "words" }} }}',
        )
    )

    np.testing.assert_array_equal(ran["x"], [row, row])
    assert ran["text"].tolist() == [[b"one", "zwölf".encode()]] * 2


def test_a_sample_on_which_the_model_fails_is_named(tmp_path: Path) -> None:
    read = config(tmp_path, f'name: "all zeros" batch_size: 1 {ZEROS} {NO_TEXT}')

    with pytest.raises(BadModel, match="model_warmup 'all zeros': cannot stand 0"):
        run_samples(read.spec, FakeBackend(poison=0.0), read.warmup)


def test_a_sample_whose_answer_has_other_rows_is_named(tmp_path: Path) -> None:
    read = config(tmp_path, f'name: "s" batch_size: 2 {ZEROS} {NO_TEXT}')

    with pytest.raises(
        BadModel, match=r"model_warmup 's': output 'y': .* one row for each of the 2"
    ):
        run_samples(read.spec, FakeBackend(lambda inputs: {"y": inputs["x"][:1]}), read.warmup)


@pytest.mark.parametrize(
    ("warmup", "message"),
    [
        (f"{ZEROS} {NO_TEXT}", "model_warmup '0': batch_size 0 must be from 1 to 8"),
        (f"batch_size: 9 {ZEROS} {NO_TEXT}", "batch_size 9 must be from 1 to 8"),
        (f"batch_size: 1 {ZEROS}", r"inputs: \['text'\] are missing"),
        ('batch_size: 1 inputs { key: "z" value { } }', r"inputs \['z'\]: the model's are"),
        (
            f"batch_size: 1 {ZEROS.replace('FP32', 'FP64')} {NO_TEXT}",
            "input 'x': data_type FP64, the model wants FP32",
        ),
        (
            f"batch_size: 1 {ZEROS.replace('[3, 2]', '[3, 3]')} {NO_TEXT}",
            r"input 'x': dims \[3, 3\], the model wants \[-1, 2\]",
        ),
        (
            f"batch_size: 1 {ZEROS.replace('[3, 2]', '[-1, 2]')} {NO_TEXT}",
            r"input 'x': dims \[-1, 2\], the model wants",
        ),
        (
            f"batch_size: 1 {ZEROS.replace('zero_data: true', '')} {NO_TEXT}",
            "input 'x': one of zero_data, random_data, input_data_file is missing",
        ),
        (
            f"batch_size: 1 {of_file(ZEROS, 'no')} {NO_TEXT}",
            "input 'x': input_data_file .*/warmup/no is missing",
        ),
        (
            f"batch_size: 1 {of_file(ZEROS, 'five')} {NO_TEXT}",
            r"warmup/five has 5 bytes, dims \[3, 2\] want 24",
        ),
        (
            f"batch_size: 1 {ZEROS} {of_file(NO_TEXT, 'five')}",
            "input 'text': input_data_file .*/five: the data is no BYTES tensor",
        ),
        (
            f"batch_size: 1 {of_file(ZEROS, '../x')} {NO_TEXT}",
            r"input_data_file '\.\./x' must not contain a path",
        ),
    ],
)
def test_a_sample_that_cannot_be_run_is_refused(tmp_path: Path, warmup: str, message: str) -> None:
    (tmp_path / "m" / "warmup").mkdir(parents=True)
    (tmp_path / "m" / "warmup" / "five").write_bytes(b"\x09\0\0\0x")

    with pytest.raises(BadModel, match=message) as refusal:
        config(tmp_path, warmup)

    assert str(refusal.value).startswith(f"{tmp_path}/m/config.pbtxt: model_warmup '0'")
