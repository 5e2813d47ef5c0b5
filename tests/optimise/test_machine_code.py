"""AOTInductor packages: compiled here, served where that is allowed, refused on another CPU."""

from __future__ import annotations

import json
import platform
import zipfile
from pathlib import Path

import pytest

from ferry.cli import main
from shared.errors import BadModel
from shared.settings import Settings
from worker.optimise.subjects import load_version
from worker.repository.models import read_model

TRUSTING = Settings(allow_machine_code=True)
OPTIONS = ("--input", "x:4", "--name", "m", "--to", "aoti")

HERE = {"AOTI_DEVICE_KEY": "cpu", "AOTI_MACHINE": platform.machine(), "AOTI_CPU_ISA": ""}


def save_package(models: Path, metadata: dict[str, str]) -> None:
    """Save a package without any code in it: what it says is looked at first."""
    (models / "m" / "1").mkdir(parents=True)
    tensors = 'input [ { name: "x" data_type: TYPE_FP32 dims: [4] } ]\n'
    tensors += 'output [ { name: "output" data_type: TYPE_FP32 dims: [3] } ]\n'
    (models / "m" / "config.pbtxt").write_text(f"max_batch_size: 8\n{tensors}")
    with zipfile.ZipFile(models / "m" / "1" / "model.pt2", "w") as archive:
        archive.writestr("m/data/aotinductor/model/a.wrapper_metadata.json", json.dumps(metadata))
        archive.writestr("m/archive_format", "pt2")


def test_machine_code_is_loaded_where_it_is_trusted_alone(tmp_path: Path) -> None:
    save_package(tmp_path, HERE)

    with pytest.raises(BadModel, match="FERRY_ALLOW_MACHINE_CODE=1"):
        read_model(tmp_path, "m", trusted=())
    with pytest.raises(BadModel, match="FERRY_ALLOW_MACHINE_CODE=1"):
        load_version(read_model(tmp_path, "m"), Settings(allow_pickle=True))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"FERRY_CPU_FLAGS": "sse2 avx9 avx10_9"}, "with avx10_9, avx9, which this one lacks"),
        ({"AOTI_CPU_ISA": "AVX10_2"}, "a CPU with avx10_2, which"),
        ({"AOTI_MACHINE": "riscv64"}, "a CPU of the kind riscv64"),
        ({"AOTI_DEVICE_KEY": "cuda"}, "compiled for cuda, and the instance runs on cpu"),
    ],
)  # fmt: skip
def test_a_package_for_another_machine_is_refused_before_it_runs(
    tmp_path: Path, changed: dict[str, str], said: str
) -> None:
    save_package(tmp_path, HERE | changed)

    with pytest.raises(BadModel, match=said) as raised:
        load_version(read_model(tmp_path, "m"), TRUSTING)

    assert "\n" not in str(raised.value)


def test_without_a_compiler_one_sentence_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)

    models = str(tmp_path / "models")
    assert main(["export", "exported_models:Trained", "--models", models, *OPTIONS]) == 1

    error = capfd.readouterr().err
    assert "needs a C++ compiler" in error
    assert error.count("\n") == 1
