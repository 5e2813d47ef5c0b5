"""`config.pbtxt` and the model directory: what is read, and how each mistake is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from shared.errors import BadModel
from shared.model_spec import ImageInput, QueuePolicy, TensorSpec
from worker.repository.model_config import InstanceGroup, ModelConfig, read_config
from worker.repository.models import model_names, read_model

INPUT = 'input [ { name: "x" data_type: TYPE_FP32 dims: [4] } ]\n'
OUTPUT = 'output [ { name: "y" data_type: TYPE_FP32 dims: [3] } ]\n'
PLATFORM = 'platform: "pytorch_libtorch"\n'
TOKENIZER = '{"model": {"vocab": {}}}'
GOOD = PLATFORM + "max_batch_size: 8\n" + INPUT + OUTPUT
PICTURE = (
    PLATFORM
    + "max_batch_size: 8\n"
    + 'input [ { name: "x" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [3, 4, 5] } ]\n'
    + OUTPUT
)
TEXT = (
    PLATFORM
    + "max_batch_size: 8\n"
    + 'input [ { name: "input_ids" data_type: TYPE_INT64 dims: [-1] allow_ragged_batch: true } ]\n'
    + OUTPUT
)


MASK = '{ name: "attention_mask" data_type: TYPE_BOOL dims: [9] }'


def parameters(**values: str) -> str:
    return "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
        for key, value in values.items()
    )


def image(**values: str) -> str:
    return PICTURE + parameters(input_kind="image", **values)


def text(**values: str) -> str:
    return TEXT + parameters(input_kind="text", **values)


MASKED = text().replace("[-1]", "[9]").replace("} ]", f"}}, {MASK} ]", 1)


ONE_SCORE = 'output [ { name: "y" data_type: TYPE_FP32 dims: [1, 1] } ]\n'


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model directory whose config is still to be written."""
    directory = tmp_path / "models" / "m"
    (directory / "1").mkdir(parents=True)
    (directory / "1" / "model.pt").write_bytes(b"model")
    (directory / "labels.txt").write_text("zero\none \n\ntwo\n")
    (directory / "tokenizer.json").write_text(TOKENIZER)
    return directory


def config_of(model: Path, text: str) -> ModelConfig:
    (model / "config.pbtxt").write_text(text)
    return read_config(model / "config.pbtxt", "1")


def test_a_good_config_is_read_whole(model: Path) -> None:
    more = (
        'name: "m" default_model_filename: "other.pt"\n'
        "instance_group [ { kind: KIND_CPU count: 2 }, { kind: KIND_GPU gpus: [0, 1] } ]\n"
        "dynamic_batching { max_queue_delay_microseconds: 1500 priority_levels: 3\n"
        "  default_priority_level: 2 default_queue_policy { max_queue_size: 7 } }\n"
    )

    config = config_of(model, GOOD + more + parameters(output_activation="none"))

    spec = config.spec
    assert (spec.name, spec.version, spec.platform) == ("m", "1", "pytorch_libtorch")
    assert (spec.max_batch_size, spec.max_queue_delay_seconds) == (8, 0.0015)
    assert (spec.priority_levels, spec.default_priority_level) == (3, 2)
    assert spec.queue_policies == (QueuePolicy(max_queue_size=7),) * 3
    assert spec.inputs == (TensorSpec(name="x", datatype="FP32", dims=(4,)),)
    assert spec.outputs == (TensorSpec(name="y", datatype="FP32", dims=(3,)),)
    assert spec.output_activation == "none"
    assert (config.backend, config.filename) == ("torchscript", "other.pt")
    assert config.instance_groups == (
        InstanceGroup("cpu", 2),
        InstanceGroup("gpu", 1, (0, 1)),
    )


def test_what_a_config_leaves_out_has_tritons_defaults(model: Path) -> None:
    config = config_of(model, PLATFORM + INPUT + OUTPUT)

    assert (config.spec.max_batch_size, config.spec.batched) == (0, False)
    assert config.spec.max_queue_delay_seconds == 0.0
    assert (config.spec.queue_policies, config.spec.priority_levels, config.spec.levels) == (
        (),
        0,
        1,
    )
    assert config.instance_groups == (InstanceGroup("auto", 1),)
    assert config.filename == "model.pt"


@pytest.mark.parametrize(
    ("platform", "backend", "filename"),
    [
        ('platform: "pytorch_libtorch"', "torchscript", "model.pt"),
        ('backend: "pytorch"', "torchscript", "model.pt"),
        ('platform: "onnxruntime_onnx"', "onnxruntime", "model.onnx"),
        ('backend: "onnxruntime"', "onnxruntime", "model.onnx"),
    ],
)
def test_platform_or_backend_names_the_framework(
    model: Path, platform: str, backend: str, filename: str
) -> None:
    config = config_of(model, platform + "\n" + INPUT + OUTPUT)

    assert (config.backend, config.filename) == (backend, filename)


def test_strings_are_bytes_and_any_size_is_minus_one(model: Path) -> None:
    given = 'input [ { name: "x" data_type: TYPE_STRING dims: [-1] allow_ragged_batch: true } ]\n'

    config = config_of(model, PLATFORM + given + OUTPUT)

    assert config.spec.inputs == (TensorSpec(name="x", datatype="BYTES", dims=(-1,), ragged=True),)


def test_labels_are_read_from_their_file(model: Path) -> None:
    labelled = OUTPUT.replace("dims", 'label_filename: "labels.txt" dims')

    config = config_of(model, PLATFORM + INPUT + labelled)

    assert config.spec.outputs[0].labels == ("zero", "one", "", "two")


def test_picture_parameters_are_read(model: Path) -> None:
    config = config_of(
        model, image(image_mean="0.1,0.2,0.3", image_std="2", image_resize="crop", image_scale="1")
    )

    assert config.spec.image == ImageInput(
        input="x", height=4, width=5, mean=(0.1, 0.2, 0.3), std=(2.0,), resize="crop"
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("max_batch_size: many", "many"),
        (GOOD + "colour: 3", "colour"),
        (GOOD.replace("8", "-8"), "max_batch_size -8 must not be negative"),
        (GOOD + 'name: "n"', "name 'n' differs from the directory's, 'm'"),
        (
            PLATFORM + INPUT,
            r"output left out, and a file like model\.pt \(torchscript\) does not say",
        ),
        (GOOD + INPUT, "tensor 'x' is declared twice"),
        (GOOD.replace('name: "x"', ""), "tensor '': name must not be empty"),
        (
            GOOD.replace("pytorch_libtorch", "caffe2_netdef"),
            "platform 'caffe2_netdef', backend '': expected one of",
        ),
        (GOOD.replace("[4]", "[]"), "tensor 'x': dims must not be empty"),
        (GOOD.replace("[4]", "[4, 0]"), r"tensor 'x': dims \[4, 0\] must be positive or -1"),
        (GOOD.replace("[4]", "[-2]"), r"tensor 'x': dims \[-2\] must be positive or -1"),
        (GOOD.replace("TYPE_FP32", "TYPE_INVALID"), "tensor 'x': data_type INVALID"),
        (GOOD.replace("TYPE_FP32", "TYPE_QUAD"), "TYPE_QUAD"),
        (GOOD + "instance_group [ { kind: KIND_MODEL } ]", "instance_group: kind KIND_MODEL"),
        (GOOD + "instance_group [ { count: -1 } ]", "instance_group: count -1 must not be"),
        (GOOD + "instance_group [ { kind: KIND_CPU gpus: [0] } ]", r"instance_group: gpus \[0\]"),
        (GOOD + parameters(output_activation="relu"), "output_activation: .* 'relu'"),
        (
            PLATFORM + INPUT + ONE_SCORE + parameters(output_activation="softmax"),
            r"softmax: output 'y' has one score per row by its dims \[1, 1\], .* expected sigmoid",
        ),
        (image(image_channels="L"), "image_channels 'L' does not fit 3 channels"),
        (image(image_channels="CMYK"), "channels: .* 'CMYK'"),
        (image(image_resize="squash"), "resize: .* 'squash'"),
        (image(image_resize_size="big"), "image_resize_size 'big': expected int"),
        (image(image_scale="1/255"), "image_scale '1/255': expected float"),
        (image(image_scale="1,2"), "image_scale '1,2': 2 numbers, expected 1"),
        (image(image_mean="0.5,half,0.5"), "image_mean '0.5,half,0.5': expected float"),
        (image(image_mean="0.5,0.5"), r"image_mean: 2 numbers for 3 channels \(got \[0.5, 0.5\]"),
        (image(image_std="1,0,1"), r"image_std: must not be 0 \(got \[1.0, 0.0, 1.0\]"),
        (image().replace("[3, 4, 5]", "[3, 4]"), r"input 'x': dims \[3, 4\], FORMAT_NCHW has 3"),
        (image().replace("[3, 4, 5]", "[3, -1, -1]"), r"input 'x': dims \[3, -1, -1\]"),
    ],
)
def test_a_mistake_is_named_with_file_field_and_value(
    model: Path, config: str, message: str
) -> None:
    with pytest.raises(BadModel, match=message) as refusal:
        config_of(model, config)

    assert str(refusal.value).startswith(f"{model}/config.pbtxt: ")


@pytest.mark.parametrize("values", [{}, {"output_activation": "sigmoid"}])
def test_one_score_per_row_is_taken_but_for_its_softmax(
    model: Path, values: dict[str, str]
) -> None:
    config = config_of(model, PLATFORM + INPUT + ONE_SCORE + parameters(**values))

    assert config.spec.outputs[0].dims == (1, 1)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", "."])
@pytest.mark.parametrize("field", ["default_model_filename", "label_filename", "tokenizer"])
def test_a_file_name_that_leaves_the_directory_is_refused(
    model: Path, field: str, name: str
) -> None:
    (model / "config.pbtxt").write_text(
        {
            "default_model_filename": GOOD + f'default_model_filename: "{name}"',
            "label_filename": PLATFORM
            + INPUT
            + OUTPUT.replace("dims", f'label_filename: "{name}" dims'),
            "tokenizer": text(tokenizer=name),
        }[field]
    )

    with pytest.raises(BadModel, match="must not contain a path") as refusal:
        read_model(model.parent, "m")

    assert f"config.pbtxt: {field} {name!r}" in str(refusal.value)


def test_a_label_file_that_is_missing_is_named(model: Path) -> None:
    labelled = OUTPUT.replace("dims", 'label_filename: "none.txt" dims')

    with pytest.raises(BadModel, match=r"none\.txt"):
        config_of(model, PLATFORM + INPUT + labelled)


def test_the_highest_version_is_served(model: Path) -> None:
    (model / "config.pbtxt").write_text(GOOD)
    for version in ("2", "10", "latest"):
        shutil.copytree(model / "1", model / version)

    served = read_model(model.parent, "m")

    assert (served.spec.key, served.file) == ("m/10", model / "10" / "model.pt")


@pytest.mark.parametrize("content", [None, b""])
def test_a_model_file_that_is_missing_or_empty_is_named(model: Path, content: bytes | None) -> None:
    (model / "config.pbtxt").write_text(GOOD)
    file = model / "1" / "model.pt"
    file.unlink() if content is None else file.write_bytes(content)

    with pytest.raises(BadModel, match=r"failed to load 'm', .*/1/model.pt is missing or empty"):
        read_model(model.parent, "m")


def test_a_model_without_a_version_is_refused(model: Path) -> None:
    (model / "config.pbtxt").write_text(GOOD)
    shutil.rmtree(model / "1")

    with pytest.raises(BadModel, match="has no version directory"):
        read_model(model.parent, "m")


def test_a_text_model_brings_its_tokenizer(model: Path) -> None:
    (model / "config.pbtxt").write_text(text(max_length="64", truncate="false"))

    served = read_model(model.parent, "m")

    assert served.asset == TOKENIZER.encode()
    assert served.spec.text is not None
    assert (served.spec.text.max_length, served.spec.text.truncate) == (64, False)


def test_a_tokenizer_without_a_model_of_its_own_is_refused(model: Path) -> None:
    (model / "config.pbtxt").write_text(text())
    (model / "tokenizer.json").write_text("{}")

    with pytest.raises(BadModel, match=r'tokenizer\.json: the tokenizer has no "model"'):
        read_model(model.parent, "m")


@pytest.mark.parametrize(("said", "found"), [({}, 9), ({"max_length": "5"}, 5)])
def test_no_more_tokens_are_taken_than_the_inputs_have(
    model: Path, said: dict[str, str], found: int
) -> None:
    (model / "config.pbtxt").write_text(MASKED + parameters(**said))

    served = read_model(model.parent, "m")

    assert served.spec.text is not None
    assert served.spec.text.max_length == found


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (text(max_length="long"), "max_length 'long': expected int"),
        (text(tokenizer="none.json"), "none.json"),
        (text(max_length="0"), "max_length 0: expected a number from 1"),
        (text().replace("input_ids", "x"), r"has the inputs input_ids .* not \['x'\]"),
        (text().replace("INT64", "UINT8"), "input 'input_ids': UINT8 cannot hold the ids of a"),
        (text().replace("INT64", "FP16"), "input 'input_ids': FP16 cannot hold the ids of a"),
        (text().replace("INT64", "STRING"), "input 'input_ids': BYTES cannot hold the ids of a"),
        (text().replace("[-1]", "[1, -1]"), r"dims \[1, -1\], a text has \[length\], which may be"),
        (text().replace("size: 8", "size: 0").replace("[-1]", "[2, 8]"), r"\[length\] or \[1, len"),
        (MASKED.replace("dims: [9]", "dims: [8]", 1), "has as many tokens in each of its inputs"),
        (
            MASKED.replace("TYPE_BOOL", "TYPE_STRING"),
            "'attention_mask': expected a datatype",
        ),
    ],
)
def test_a_mistake_in_a_text_model_is_named(model: Path, config: str, message: str) -> None:
    (model / "config.pbtxt").write_text(config)

    with pytest.raises(BadModel, match=message) as refusal:
        read_model(model.parent, "m")

    assert f"{model}/config.pbtxt" in str(refusal.value)


def test_only_directories_with_a_config_and_a_plain_name_are_models(model: Path) -> None:
    (model / "config.pbtxt").write_text(GOOD)
    for name in ("no-config", ".hidden", "with space"):
        (model.parent / name).mkdir()
    for name in (".hidden", "with space"):
        (model.parent / name / "config.pbtxt").write_text(GOOD)

    assert model_names(model.parent) == ["m"]


def test_a_repository_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="nowhere: no such model repository"):
        model_names(tmp_path / "nowhere")


def test_the_sample_models_are_read(sample_models: Path) -> None:
    for name in ("digits", "resnet18", "tiny"):
        assert read_model(sample_models, name).spec.max_batch_size == 32


@pytest.mark.parametrize(
    ("batching", "message"),
    [
        ("priority_levels: 101", "default_priority_level 0 must be from 1 to 101"),
        ("priority_levels: 2", "default_priority_level 0 must be from 1 to 2"),
        (
            "priority_levels: 2 default_priority_level: 3",
            "default_priority_level 3 must be from 1 to 2",
        ),
    ],
)
def test_levels_that_cannot_be_are_refused(model: Path, batching: str, message: str) -> None:
    with pytest.raises(BadModel, match=message):
        config_of(model, GOOD + f"dynamic_batching {{ {batching} }}")
