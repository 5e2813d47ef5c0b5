"""Which format a model has: by its config's words, and by the file that is there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from formats_repository import add_format
from tritonclient.grpc import model_config_pb2

from shared.errors import BadModel
from worker.repository.check import check_repository
from worker.repository.config.as_json import config_json
from worker.repository.config.formats import FORMATS, Format, find_format
from worker.repository.models import model_names, read_model


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


# What is in the file.


def onnx_file(file: Path) -> Path:
    add_format(file.parent / "made", "onnx").rename(file)
    return file


def weights_file(file: Path) -> Path:
    torch.save({"w": torch.ones(1)}, file)
    return file


@pytest.mark.parametrize("name", ["model.onnx", "best.onnx", "model.pt", "model.bin", "net.pkl"])
def test_the_content_decides_whatever_the_name(version: Path, name: str) -> None:
    onnx_file(version / name)
    (version / "readme.md").write_text("words")

    assert found(version) == ("onnxruntime", name)
    assert found(version, backend="onnxruntime") == ("onnxruntime", name)
    assert found(version, filename=name) == ("onnxruntime", name)


@pytest.mark.parametrize(
    ("kind", "name"), [("onnx", "model.pt2"), ("torch_export", "best.bin"), ("onnx", "net.pt")]
)
def test_a_file_of_any_name_completes_its_config(tmp_path: Path, kind: str, name: str) -> None:
    file = add_format(tmp_path, kind)
    file.rename(file.with_name(name))
    (file.parent.parent / "config.pbtxt").unlink()

    spec = read_model(tmp_path, kind).spec

    assert [tensor.dims for tensor in (*spec.inputs, *spec.outputs)] == [(2,), (2,)]


def test_a_usual_name_comes_before_another(version: Path) -> None:
    weights_file(version / "best.ckpt")
    weights_file(version / "model.pt")

    assert found(version) == ("torch_state_dict", "model.pt")


def test_of_several_other_names_one_must_be_named(version: Path) -> None:
    onnx_file(version / "a.onnx")
    weights_file(version / "b.ckpt")

    with pytest.raises(ValueError, match=r"there are several files: \['a.onnx', 'b.ckpt'\]"):
        found(version)
    assert found(version, backend="pytorch") == ("torch_state_dict", "b.ckpt")


@pytest.mark.parametrize(
    "fields",
    [{"platform": "pytorch_libtorch"}, {"backend": "pytorch"}, {"platform": "sklearn"}],
)
@pytest.mark.parametrize("name", ["model.pt", "model.joblib", "best.pt"])
def test_a_file_that_is_not_what_the_config_says_is_named(
    version: Path, fields: dict[str, str], name: str
) -> None:
    onnx_file(version / name)
    said = " ".join(f"{key} '{value}'" for key, value in fields.items())

    with pytest.raises(ValueError, match="is an ONNX model") as raised:
        found(version, **fields)

    assert str(raised.value) == (
        f'{said}, but {name} is an ONNX model: write platform: "onnxruntime_onnx", or leave '
        "platform and backend out"
    )


@pytest.mark.parametrize("fields", [{}, {"backend": "pytorch"}, {"filename": "model.pt"}])
def test_a_file_that_nothing_runs_is_told_with_its_path(
    tmp_path: Path, fields: dict[str, str]
) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    file = tmp_path / "m" / "1" / "model.pt"
    file.write_text("version https://git-lfs.github.com/spec/v1\n")
    config = {"backend": 'backend: "pytorch"', "filename": 'default_model_filename: "model.pt"'}
    (file.parent.parent / "config.pbtxt").write_text("".join(config[key] for key in fields))

    with pytest.raises(BadModel) as raised:
        read_model(tmp_path, "m")

    said = (
        f"{file}: a Git LFS pointer, a few lines in place of the model: "
        "fetch the file itself with git lfs pull"
    )
    assert str(raised.value) == f"failed to load 'm', {said}"
    assert check_repository(tmp_path).problems == [said]


def test_a_saved_model_and_a_directory_in_place_of_a_file_are_told(tmp_path: Path) -> None:
    saved, plain = tmp_path / "a" / "1" / "model.savedmodel", tmp_path / "b" / "1" / "model.onnx"
    for directory in (saved, plain):
        directory.mkdir(parents=True)
    (saved / "saved_model.pb").write_bytes(b"\x08\x01")
    (plain.parent.parent / "config.pbtxt").write_text('default_model_filename: "model.onnx"')

    assert model_names(tmp_path) == ["a", "b"]
    with pytest.raises(BadModel, match=r"a/1/model.savedmodel: a TensorFlow SavedModel: convert"):
        read_model(tmp_path, "a")
    with pytest.raises(BadModel, match=r"b/1/model.onnx: a directory, not a file: put"):
        read_model(tmp_path, "b")


@pytest.mark.parametrize("config", ["", 'default_model_filename: "model.onnx"'])
def test_a_directory_called_as_a_file_holds_it(tmp_path: Path, config: str) -> None:
    directory = tmp_path / "m" / "1" / "model.onnx"
    directory.mkdir(parents=True)
    onnx_file(directory / "model.onnx")
    if config:
        (tmp_path / "m" / "config.pbtxt").write_text(config)

    served = read_model(tmp_path, "m")

    assert served.file == directory / "model.onnx"
    assert served.config.backend == "onnxruntime"


@pytest.mark.parametrize("each", FORMATS, ids=[each.backend for each in FORMATS])
def test_the_configuration_shows_what_the_format_is_called(each: Format) -> None:
    shown = config_json(model_config_pb2.ModelConfig(), "m", each.backend, each.files[0])

    assert (shown["platform"], shown["backend"]) == (each.platform, each.triton_backend)
    assert shown["default_model_filename"] == each.files[0]
