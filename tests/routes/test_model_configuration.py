"""GET /v2/models/<model>/config: the configuration with the proto's field names, all of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from answers import answer, refusal
from flask.testing import FlaskClient
from google.protobuf import json_format, text_format
from registered import register, spec
from triton_http import refused, triton_client
from tritonclient.grpc import model_config_pb2

from api.app import create_app
from shared.model_spec import ModelSpec, TensorSpec
from shared.settings import Settings
from worker.repository.config.as_json import config_json, message_json
from worker.repository.model_config import read_config

LARGEST = 2**64 - 1
RICH = f"""
name: "m" backend: "onnxruntime" max_batch_size: 8
input [ {{ name: "x" data_type: TYPE_FP16 format: FORMAT_NCHW dims: [3, -1, 5]
           reshape {{ shape: [1, 3, -1, 5] }} allow_ragged_batch: true }},
        {{ name: "flag" data_type: TYPE_BOOL dims: [1] reshape {{ }} optional: true }} ]
output [ {{ name: "y" data_type: TYPE_STRING dims: [-1] label_filename: "labels.txt" }} ]
instance_group [ {{ kind: KIND_CPU count: 2 }}, {{ name: "mine" kind: KIND_GPU gpus: [0, 1] }} ]
dynamic_batching {{ preferred_batch_size: [4, 8] max_queue_delay_microseconds: {LARGEST}
  priority_levels: 2 default_priority_level: 1
  default_queue_policy {{ timeout_action: DELAY default_timeout_microseconds: 9007199254740993 }}
  priority_queue_policy {{ key: 2 value {{ max_queue_size: 7 }} }} }}
parameters {{ key: "label_key" value {{ string_value: "schön" }} }}
default_model_filename: "other.onnx"
"""
PLAIN = """
platform: "pytorch_libtorch" max_batch_size: 4 dynamic_batching { }
input [ { name: "x" data_type: TYPE_FP32 dims: [2] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [3] } ]
"""
PLAIN_AS_JSON = {
    "name": "m",
    "platform": "pytorch_libtorch",
    "backend": "pytorch",
    "runtime": "",
    "version_policy": {"latest": {"num_versions": 1}},
    "max_batch_size": 4,
    "input": [
        {
            "name": "x",
            "data_type": "TYPE_FP32",
            "format": "FORMAT_NONE",
            "dims": [2],
            "is_shape_tensor": False,
            "allow_ragged_batch": False,
            "optional": False,
            "is_non_linear_format_io": False,
        }
    ],
    "output": [
        {
            "name": "y",
            "data_type": "TYPE_FP32",
            "dims": [3],
            "label_filename": "",
            "is_shape_tensor": False,
            "is_non_linear_format_io": False,
        }
    ],
    "batch_input": [],
    "batch_output": [],
    "dynamic_batching": {
        "preferred_batch_size": [4],
        "max_queue_delay_microseconds": 0,
        "preserve_ordering": False,
        "priority_levels": 0,
        "default_priority_level": 0,
        "priority_queue_policy": {},
    },
    "instance_group": [
        {
            "name": "m_0",
            "kind": "KIND_AUTO",
            "count": 1,
            "gpus": [],
            "secondary_devices": [],
            "profile": [],
            "passive": False,
            "host_policy": "",
        }
    ],
    "default_model_filename": "model.pt",
    "cc_model_filenames": {},
    "metric_tags": {},
    "parameters": {},
    "model_warmup": [],
}


def message(text: str) -> Any:
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def spec_of(tmp_path: Path, text: str) -> ModelSpec:
    """Read `text` as the config of model `m`."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "labels.txt").write_text("a\nb\n")
    (tmp_path / "m" / "config.pbtxt").write_text(text)
    return read_config(tmp_path / "m" / "config.pbtxt", "1").spec


# As JSON.


def test_a_plain_config_is_printed_with_all_defaults(tmp_path: Path) -> None:
    assert spec_of(tmp_path, PLAIN).config == PLAIN_AS_JSON


def test_a_config_survives_the_registry_and_turns_back_into_its_message(tmp_path: Path) -> None:
    wanted = message(RICH)
    wanted.platform = "onnxruntime_onnx"
    wanted.version_policy.latest.num_versions = 1
    wanted.instance_group[0].name = "m_0"
    wanted.instance_group[1].count = 1

    stored = ModelSpec.model_validate_json(spec_of(tmp_path, RICH).model_dump_json())

    assert json_format.ParseDict(stored.config, model_config_pb2.ModelConfig()) == wanted


def test_integers_of_64_bits_are_numbers_and_maps_have_text_for_keys(tmp_path: Path) -> None:
    config = spec_of(tmp_path, RICH).config

    batching = config["dynamic_batching"]
    assert batching["max_queue_delay_microseconds"] == LARGEST
    policy = batching["default_queue_policy"]
    assert policy["default_timeout_microseconds"] == 9007199254740993
    assert policy["timeout_action"] == "DELAY"
    assert batching["priority_queue_policy"]["2"]["max_queue_size"] == 7
    assert config["input"][0]["dims"] == [3, -1, 5]
    assert config["input"][1]["reshape"] == {"shape": []}


@pytest.mark.parametrize("text", [RICH, PLAIN, "model_warmup { inputs { key: 'x' value { } } }"])
def test_the_fields_printed_are_those_that_protobuf_prints(text: str) -> None:
    def with_text_for_numbers(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: with_text_for_numbers(item) for key, item in value.items()}
        if isinstance(value, list):
            return [with_text_for_numbers(item) for item in value]
        return str(value) if type(value) is int else value

    protobuf = json_format.MessageToDict(
        message(text), preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )

    assert with_text_for_numbers(message_json(message(text))) == with_text_for_numbers(protobuf)


def test_an_enum_without_a_name_is_its_number() -> None:
    odd = message(PLAIN)
    odd.input[0].format = 42

    assert message_json(odd)["input"][0]["format"] == 42


def test_a_config_without_batches_gets_no_preferred_size() -> None:
    config = config_json(message("dynamic_batching { }"), "m", "torchscript", "model.pt")

    assert config["dynamic_batching"]["preferred_batch_size"] == []


# Over HTTP.


@pytest.fixture
def registered_client(settings: Settings) -> FlaskClient:
    """An API that knows one model which nobody serves, with the largest numbers in its config."""
    model = spec("m", TensorSpec(name="x", datatype="FP32", dims=(2,)))
    config = config_json(message(RICH), "m", "onnxruntime", "other.onnx")
    register(settings, model.model_copy(update={"config": config}), ready=False)
    return create_app(settings).test_client()


@pytest.mark.parametrize("path", ["/v2/models/m/config", "/v2/models/m/versions/1/config"])
def test_the_config_is_answered_exactly_whether_or_not_the_model_is_ready(
    registered_client: FlaskClient, path: str
) -> None:
    config = answer(registered_client.get(path))

    assert config == config_json(message(RICH), "m", "onnxruntime", "other.onnx")


@pytest.mark.parametrize(
    "path",
    ["/v2/models/n/config", "/v2/models/m/versions/2/config", "/v2/models/m/versions/x/config"],
)
def test_the_config_of_what_is_not_there_is_404(registered_client: FlaskClient, path: str) -> None:
    assert "not found" in refusal(registered_client.get(path), 404, "unknown_model")


# Triton's client, the sample models.


@pytest.fixture(scope="module")
def triton(served: Settings) -> Iterator[Any]:
    with triton_client(served) as client:
        yield client


@pytest.mark.parametrize("version", ["", "1"])
def test_tritons_client_gets_a_served_models_config(triton: Any, version: str) -> None:
    config = triton.get_model_config("sentiment", version)

    back = json_format.ParseDict(config, model_config_pb2.ModelConfig())
    assert (back.name, back.platform, back.backend) == (
        "sentiment", "onnxruntime_onnx", "onnxruntime"
    )  # fmt: skip
    assert [item.name for item in back.input] == ["input_ids", "attention_mask"]
    assert back.parameters["input_kind"].string_value == "text"
    assert back.default_model_filename == "model.onnx"


def test_tritons_client_is_told_of_unknown_models_and_versions(triton: Any) -> None:
    assert refused(triton.get_model_config, "nobody") == (
        "404", "Request for unknown model: 'nobody' is not found"
    )  # fmt: skip
    assert refused(triton.get_model_config, "tiny", "9")[0] == "404"
    assert refused(triton.get_model_config, "tiny", "-1")[0] == "404"
