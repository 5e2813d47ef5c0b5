"""A file is known by what is in it, whatever its name, and nothing in it is run to find out."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from formats_repository import add_format
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from worker.repository import pickles
from worker.repository.file_kinds import code_refusal
from worker.repository.sniffer import what_is


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class Trap:
    """Unpickled, it creates a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def weights() -> dict[str, torch.Tensor]:
    return Net().state_dict()


def zipped(*names: str) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return held.getvalue()


def header(content: bytes) -> bytes:
    """Return the beginning of a safetensors file."""
    return len(content).to_bytes(8, "little") + content


def damaged_zip() -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("model/data.pkl", np.random.default_rng(0).bytes(3000))
    content = bytearray(held.getvalue())
    content[60:300] = bytes(each ^ 0x5A for each in content[60:300])
    return bytes(content)


def deep_pickle() -> bytes:
    """Return the pickle of dictionaries in one another, deeper than Python's stack."""
    level = b"}X\x01\0\0\0wctorch._utils\n_rebuild_tensor\n)RsX\x01\0\0\0a"
    return b"\x80\x02" + level * 5000 + b"}" + b"s" * 5000 + b"."


def tarred(*names: str) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return held.getvalue()


def saved(value: Any, **options: Any) -> bytes:
    held = io.BytesIO()
    torch.save(value, held, **options)
    return held.getvalue()


def dumped(value: Any, compress: Any = 0) -> bytes:
    held = io.BytesIO()
    joblib.dump(value, held, compress=compress)
    return held.getvalue()


@cache
def pipeline() -> Any:
    texts, moods = ["good", "bad", "fine", "awful"], ["positive", "negative"] * 2
    return make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, moods)


LEGACY = {"_use_new_zipfile_serialization": False}
UBJ = b"{L" + (7).to_bytes(8, "big") + b"learner{L"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 3\n"

RUN: dict[str, tuple[Callable[[], bytes], str]] = {
    "module": (lambda: saved(Net()), "torch_pickle"),
    "module, before zip": (lambda: saved(Net(), **LEGACY), "torch_pickle"),
    "module, pickle.dump": (lambda: pickle.dumps(Net()), "torch_pickle"),
    "module, joblib.dump": (lambda: dumped(Net()), "torch_pickle"),
    "module in a dictionary": (lambda: saved({"model": Net(), "epoch": 2}), "torch_pickle"),
    "parallel module": (lambda: saved(torch.nn.DataParallel(Net())), "torch_pickle"),
    "state dict": (lambda: saved(weights()), "torch_state_dict"),
    "state dict, before zip": (lambda: saved(weights(), **LEGACY), "torch_state_dict"),
    "plain dictionary of tensors": (lambda: saved(dict(weights())), "torch_state_dict"),
    "checkpoint": (lambda: saved({"epoch": 1, "model": weights()}), "torch_state_dict"),
    "pipeline": (lambda: dumped(pipeline()), "joblib"),
    "pipeline, zlib": (lambda: dumped(pipeline(), 3), "joblib"),
    "pipeline, gzip": (lambda: dumped(pipeline(), ("gzip", 3)), "joblib"),
    "pipeline, bz2": (lambda: dumped(pipeline(), ("bz2", 3)), "joblib"),
    "pipeline, xz": (lambda: dumped(pipeline(), ("xz", 3)), "joblib"),
    "pipeline, lzma": (lambda: dumped(pipeline(), ("lzma", 3)), "joblib"),
    "pipeline, lz4": (lambda: b"\x04\x22\x4d\x18" + bytes(40), "joblib"),
    "pipeline, pickle.dump": (lambda: pickle.dumps(pipeline()), "joblib"),
    "pipeline, protocol 0": (lambda: pickle.dumps(pipeline(), protocol=0), "joblib"),
    "pipeline, protocol 1": (lambda: pickle.dumps(LogisticRegression(), protocol=1), "joblib"),
    "module, protocol 1": (lambda: pickle.dumps(Net(), protocol=1), "torch_pickle"),
    "AOTInductor": (
        lambda: zipped("m/data/aotinductor/model/a.so", "m/archive_format"),
        "torch_aoti",
    ),
    "ONNX Runtime's format": (lambda: b"\x18\0\0\0ORTM" + bytes(60), "onnxruntime"),
}


@pytest.mark.parametrize("name", RUN)
def test_what_runs_is_known_under_any_name(tmp_path: Path, name: str) -> None:
    content, backend = RUN[name]
    file = tmp_path / "model.bin"
    file.write_bytes(content())

    assert what_is(file).backend == backend


@pytest.mark.parametrize(
    ("kind", "backend"),
    [
        ("torchscript", "torchscript"),
        ("torch_export", "torch_export"),
        ("state_dict", "torch_state_dict"),
        ("safetensors", "torch_state_dict"),
        ("onnx", "onnxruntime"),
        ("joblib", "joblib"),
    ],
)
def test_every_format_is_known_under_another_formats_name(
    tmp_path: Path, kind: str, backend: str
) -> None:
    file = add_format(tmp_path, kind)
    other = file.with_name("model.pkl" if kind != "joblib" else "model.pth")
    file.rename(other)

    assert what_is(other).backend == backend


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "torch.package": (lambda: zipped("m/.data/extern_modules"), "torch_package"),
    "torch of old": (lambda: tarred("sys_info", "pickle", "storages", "tensors"), "old_torch"),
    "a tensor": (lambda: saved(torch.ones(2)), "torch_other"),
    "a list of modules": (lambda: saved([Net()]), "torch_other"),
    "a pipeline in torch.save": (lambda: saved(pipeline()), "torch_other"),
    "pickled weights": (lambda: pickle.dumps(weights()), "pickled_weights"),
    "a pickled array": (lambda: pickle.dumps(np.arange(3)), "numpy"),
    "an old pickled array": (lambda: pickle.dumps(np.arange(3), protocol=0), "numpy"),
    "a pickled number": (lambda: pickle.dumps(np.float32(1)), "numpy"),
    "a pickled list": (lambda: pickle.dumps([1, 2]), "pickled_data"),
    "Keras": (lambda: zipped("metadata.json", "config.json", "model.weights.h5"), "keras"),
    "HDF5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(90), "hdf5"),
    "TensorFlow Lite": (lambda: b"\x1c\0\0\0TFL3" + bytes(90), "tflite"),
    "ExecuTorch": (lambda: b"\x1c\0\0\0ET12" + bytes(90), "executorch"),
    "TensorRT": (lambda: b"ftrt" + bytes(90), "tensorrt"),
    "GGUF": (lambda: b"GGUF\3\0\0\0" + bytes(90), "gguf"),
    "OpenVINO": (lambda: b'<?xml version="1.0"?><net name="m" version="11">', "openvino"),
    "PMML": (lambda: b'<?xml version="1.0"?>\n<PMML version="4.4">', "pmml"),
    "XGBoost": (lambda: b'{"learner":{"attributes":{}}}', "xgboost"),
    "XGBoost, binary": (lambda: UBJ, "xgboost"),
    "LightGBM": (lambda: b"tree\nversion=v4\n", "lightgbm"),
    "CatBoost": (lambda: b"CBM1" + bytes(90), "catboost"),
    "numpy": (lambda: b"\x93NUMPY\1\0" + bytes(90), "numpy"),
    "several arrays": (lambda: zipped("a.npy", "b.npy"), "numpy"),
    "TorchServe": (lambda: zipped("MAR-INF/MANIFEST.json", "model.pt"), "archive"),
    "zip": (lambda: zipped("iris/model.onnx", "iris/readme.md"), "archive"),
    "tar": (lambda: tarred("model.onnx"), "archive"),
    "tar.gz": (lambda: gzip.compress(tarred("model.onnx")), "archive"),
    "tar.bz2": (lambda: bz2.compress(tarred("model.onnx")), "archive"),
    "tar.xz": (lambda: lzma.compress(tarred("model.onnx")), "archive"),
    "gzip": (lambda: gzip.compress(b"\x08\x08" * 60), "archive"),
    "zstd": (lambda: b"\x28\xb5\x2f\xfd" + bytes(90), "archive"),
    "Git LFS": (lambda: LFS, "git_lfs"),
    "Git LFS, with a mark": (lambda: b"\xef\xbb\xbf" + LFS, "git_lfs"),
    "HTML, Latin-1": (lambda: "<html><title>Anhänge".encode("latin-1"), "error_page"),
    "nothing in a zip": (zipped, "archive"),
    "a dictionary, protocol 1": (lambda: pickle.dumps({"a": 1}, protocol=1), "pickled_data"),
    "a list, protocol 1": (lambda: pickle.dumps([1], protocol=1), "pickled_data"),
    "words like a pickle's": (lambda: b"cat\nhello world\n", "text"),
    "deep JSON": (lambda: b"[" * 200_000, "error_page"),
    "deep header": (lambda: header(b'{"a":' + b"[" * 200_000), "unknown"),
    "an end that is a text": (lambda: header(b'{"a":{"data_offsets":[0,"x"]}}'), "unknown"),
    "an end that is none": (lambda: header(b'{"a":{"data_offsets":[0,null]}}'), "unknown"),
    "damaged LZMA": (damaged_zip, "truncated"),
    "deep dictionaries": (deep_pickle, "unknown"),
    "HTML": (lambda: b"\n<!DOCTYPE html><html><title>404 Not Found</title>", "error_page"),
    "HTML, UTF-16": (lambda: "<html><body>Sign in</body>".encode("utf-16"), "error_page"),
    "XML": (lambda: b"<Error><Message>Access Denied</Message></Error>", "error_page"),
    "JSON": (lambda: json.dumps({"error": "Repository not found"}).encode(), "error_page"),
    "text": ("Höhe\n".encode, "text"),
    "a picture": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(90), "other"),
    "noise": (lambda: np.random.default_rng(0).bytes(900), "unknown"),
    "empty": (lambda: b"", "empty"),
    "cut zip": (lambda: saved(Net())[:900], "truncated"),
    "cut torch of before zip": (lambda: saved(Net(), **LEGACY)[:700], "truncated"),
    "cut pickle": (lambda: pickle.dumps(pipeline())[:300], "truncated"),
    "cut gzip": (lambda: dumped(pipeline(), ("gzip", 3))[:500], "truncated"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_run_is_told_with_advice(tmp_path: Path, name: str) -> None:
    content, kind = REFUSED[name]
    file = tmp_path / "model.pt"
    file.write_bytes(content())

    found = what_is(file)

    assert (found.name, found.backend) == (kind, "")
    assert found.advice


@pytest.mark.parametrize("kind", ["onnx", "safetensors", "torchscript", "torch_export"])
def test_half_a_file_is_cut_off(tmp_path: Path, kind: str) -> None:
    file = add_format(tmp_path, kind)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 2 // 3])

    assert what_is(file).name == "truncated"


def test_an_archive_and_a_page_say_what_is_in_them(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(zipped("iris/model.onnx", "iris/readme.md"))
    assert what_is(file).sentence == (
        "a zip archive of 'iris/model.onnx', 'iris/readme.md': "
        "unpack it and bring the model's own file"
    )

    file.write_bytes(b"<html><title>404\n Not Found</title>")
    assert "an HTML page (404 Not Found), no model" in what_is(file).sentence


def test_directories_are_known_too(tmp_path: Path) -> None:
    saved_model, plain = tmp_path / "model.savedmodel", tmp_path / "model.onnx"
    saved_model.mkdir()
    plain.mkdir()
    (saved_model / "saved_model.pb").write_bytes(b"\x08\x01")

    assert what_is(saved_model).name == "saved_model"
    assert what_is(plain).name == "directory"
    assert what_is(tmp_path / "nothing").name == "missing"


def test_a_checkpoint_names_the_entry_with_its_weights(tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    optimizer = torch.optim.Adam(Net().parameters()).state_dict()
    content = {"optimizer": optimizer, "state_dict": weights(), "pytorch-lightning_version": "2.5"}
    file.write_bytes(saved(content))

    found = what_is(file)

    assert (found.name, found.key) == ("checkpoint", "state_dict")
    assert found.what.startswith("a Lightning checkpoint")


def test_a_pickled_module_names_its_class(tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    file.write_bytes(saved(Net()))

    found = what_is(file)

    assert found.what == f"a pickled torch module (class {__name__}.Net)"
    assert {f"{__name__}.Net", "torch.nn.modules.linear.Linear"} <= found.classes
    refusal = code_refusal(found)
    assert "FERRY_ALLOW_PICKLE=1" in refusal
    assert "torch.export" in refusal


def test_dictionaries_that_share_others_are_looked_at_once(tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    content: dict[str, Any] = {"weight": torch.ones(1)}
    for _ in range(60):
        content = {"weight": torch.ones(1), "a": content, "b": content}
    file.write_bytes(saved(content))

    assert what_is(file).name in {"state_dict", "checkpoint"}


def test_a_dictionary_within_itself_is_not_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    content: dict[str, Any] = {"weight": torch.ones(1)}
    content["me"] = content
    file.write_bytes(saved(content))

    assert what_is(file).name == "state_dict"


@pytest.mark.parametrize("how", [saved, dumped, pickle.dumps])
def test_nothing_is_run_to_find_out(tmp_path: Path, how: Callable[[Any], bytes]) -> None:
    file, touched = tmp_path / "model.pt", tmp_path / "touched"
    file.write_bytes(how(Trap(touched)))

    what_is(file)

    assert not touched.exists()


def test_a_large_pickle_is_judged_by_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pickles, "MAX_BYTES", 1000)
    file = tmp_path / "model.pkl"
    file.write_bytes(pickle.dumps(torch.nn.Linear(1000, 10)))

    assert what_is(file).backend == "torch_pickle"


@pytest.mark.parametrize("seed", range(40))
def test_damaged_files_never_raise(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    contents = [saved(Net()), dumped(pipeline(), 3), pickle.dumps(Net()), saved(Net(), **LEGACY)]
    content = bytearray(contents[seed % len(contents)])
    for place in random.integers(20, len(content), 30):
        content[place] = random.integers(256)
    file = tmp_path / "model.pt"
    file.write_bytes(content)

    assert what_is(file).what
