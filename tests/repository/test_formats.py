"""Which format a model has: by its config's words, and by the file that is there."""

from __future__ import annotations

from pathlib import Path

import pytest
from tritonclient.grpc import model_config_pb2

from worker.repository.config.as_json import config_json
from worker.repository.config.formats import FORMATS, Format, find_format


@pytest.fixture
def version(tmp_path: Path) -> Path:
    return tmp_path


def found(version: Path, *files: str, **fields: str) -> tuple[str, str]:
    """Return backend and file name for a version directory with these files."""
    for name in files:
        (version / name).touch()
    model = find_format(
        fields.get("platform", ""), fields.get("backend", ""), fields.get("filename", ""),
        "architecture" in fields, version,
    )  # fmt: skip
    return model.format.backend, model.filename


@pytest.mark.parametrize(
    ("file", "backend"),
    [
        ("model.pt", "torchscript"),
        ("model.pt2", "torch_export"),
        ("weights.pt", "torch_state_dict"),
        ("weights.safetensors", "torch_state_dict"),
        ("model.safetensors", "torch_state_dict"),
    ],
)
def test_of_the_backend_pytorch_the_file_that_is_there_decides(
    version: Path, file: str, backend: str
) -> None:
    assert found(version, file, "model.onnx", backend="pytorch") == (backend, file)


@pytest.mark.parametrize(
    ("file", "backend"),
    [("model.onnx", "onnxruntime"), ("model.py", "python"), ("model.joblib", "joblib")],
)
def test_without_platform_and_backend_the_file_that_is_there_decides(
    version: Path, file: str, backend: str
) -> None:
    assert found(version, file) == (backend, file)


def test_without_a_file_the_first_name_is_the_one_that_is_missed(version: Path) -> None:
    assert found(version, backend="pytorch") == ("torchscript", "model.pt")
    assert found(version, backend="python") == ("python", "model.py")


def test_without_words_or_a_file_nothing_can_be_said(version: Path) -> None:
    with pytest.raises(ValueError, match="platform '', backend '': expected one of"):
        found(version)


@pytest.mark.parametrize(
    ("fields", "backend"),
    [
        ({"platform": "pytorch_libtorch"}, "torchscript"),
        ({"platform": "onnxruntime_onnx"}, "onnxruntime"),
        ({"platform": "torch_export"}, "torch_export"),
        ({"backend": "torch_export"}, "torch_export"),
        ({"backend": "torch_state_dict"}, "torch_state_dict"),
        ({"platform": "sklearn"}, "joblib"),
        ({"backend": "sklearn"}, "joblib"),
        ({"backend": "joblib"}, "joblib"),
        ({"backend": "python"}, "python"),
        ({"platform": "python"}, "python"),
    ],
)
def test_each_word_for_a_format_is_known(
    version: Path, fields: dict[str, str], backend: str
) -> None:
    assert found(version, **fields)[0] == backend


def test_an_architecture_makes_weights_of_what_could_be_a_script(version: Path) -> None:
    assert found(version, "model.pt", "weights.pt", backend="pytorch", architecture="a:b") == (
        "torch_state_dict",
        "weights.pt",
    )
    assert found(version, backend="pytorch", filename="best.pt", architecture="a:b") == (
        "torch_state_dict",
        "best.pt",
    )


@pytest.mark.parametrize(
    ("filename", "backend"),
    [("other.pt", "torchscript"), ("other.pt2", "torch_export"), ("no_ending", "torchscript")],
)
def test_a_named_file_is_taken_by_its_ending(version: Path, filename: str, backend: str) -> None:
    assert found(version, backend="pytorch", filename=filename) == (backend, filename)


def test_a_named_file_stays_in_the_model_s_directory(version: Path) -> None:
    with pytest.raises(ValueError, match=r"default_model_filename .* must not contain a path"):
        found(version, backend="pytorch", filename="../m.pt")


def test_another_platform_is_refused_whatever_is_there(version: Path) -> None:
    with pytest.raises(ValueError, match="platform 'tensorrt_plan', backend 'pytorch'"):
        found(version, "model.pt", platform="tensorrt_plan", backend="pytorch")


@pytest.mark.parametrize("each", FORMATS, ids=[each.backend for each in FORMATS])
def test_the_configuration_shows_what_the_format_is_called(each: Format) -> None:
    shown = config_json(model_config_pb2.ModelConfig(), "m", each.backend, each.files[0])

    assert (shown["platform"], shown["backend"]) == (each.platform, each.triton_backend)
    assert shown["default_model_filename"] == each.files[0]
