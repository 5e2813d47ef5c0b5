"""A configuration that came with a request: it changes what is harmless, and names no code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tritonclient.grpc import model_config_pb2 as proto

from shared.errors import BadModel
from worker.repository.model_config import ModelConfig, read_config, read_policy
from worker.repository.overrides import FILE_FIELDS, HARMLESS_FIELDS

OWN = """
backend: "pytorch" max_batch_size: 8 default_model_filename: "weights.pt"
input [ { name: "x" data_type: TYPE_FP32 dims: [2] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [2] label_filename: "labels.txt" } ]
parameters { key: "architecture" value { string_value: "net:Net" } }
parameters { key: "output_activation" value { string_value: "none" } }
model_warmup [ { name: "w" batch_size: 1
  inputs { key: "x" value { data_type: TYPE_FP32 dims: [2] zero_data: true } } } ]
"""
ENSEMBLE = """
platform: "ensemble" max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [2] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [2] } ]
"""
TENSORS: dict[str, Any] = {
    "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [2]}],
    "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [2]}],
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The config of a state dict, beside which lie a script of the operator's and a secret."""
    version = tmp_path / "m" / "1"
    version.mkdir(parents=True)
    torch.save({"a": torch.zeros(1)}, version / "weights.pt")
    (version / "model.py").write_text("class Model: ...\n")
    (tmp_path / "m" / "labels.txt").write_text("no\nyes\n")
    (tmp_path / "m" / "secret.txt").write_text("tell nobody\n")
    (tmp_path / "m" / "config.pbtxt").write_text(OWN)
    return tmp_path / "m" / "config.pbtxt"


def by_request(config: Path, **fields: Any) -> ModelConfig:
    return read_config(config, "1", json.dumps(TENSORS | fields))


def parameter(key: str, value: str) -> dict[str, Any]:
    return {"parameters": {key: {"string_value": value}}}


@pytest.mark.parametrize(
    "fields",
    [
        parameter("architecture", "os:system"),
        parameter("architecture", "net:Other"),
        parameter("architecture_arguments", '{"command": "true"}'),
        parameter("methods", "y=__reduce__"),
        parameter("tokenizer", "other.json"),
        parameter("a_model_of_theirs_reads_this", "/etc/passwd"),
        {"backend": "python"},
        {"backend": "python", "default_model_filename": "model.py"},
        {"default_model_filename": "model.py"},
        {"default_model_filename": "../1/weights.pt"},
        {"platform": "onnxruntime_onnx"},
        {"platform": "ensemble", "ensemble_scheduling": {"step": [{"model_name": "other"}]}},
        {"ensemble_scheduling": {"step": [{"model_name": "other"}]}},
        {"output": [TENSORS["output"][0] | {"label_filename": "secret.txt"}]},
        {"model_warmup": [{"name": "w", "inputs": {"x": {"input_data_file": "secret"}}}]},
        {"model_repository_agents": {"agents": [{"name": "checksum"}]}},
        {"model_operations": {"op_library_filename": ["lib.so"]}},
        {"cc_model_filenames": {"7.0": "other.pt"}},
        {"runtime": "lib.so"},
        {"instance_group": [{"kind": "KIND_CPU", "count": 65}]},
        {"instance_group": [{"kind": "KIND_CPU", "count": 40}] * 2},
    ],
)
def test_nothing_that_names_code_or_a_file_is_taken_from_a_request(
    config: Path, fields: dict[str, Any]
) -> None:
    with pytest.raises(BadModel, match=r"config.pbtxt \(as given with the request\): "):
        by_request(config, **fields)


def test_what_is_harmless_counts_and_the_rest_stays_the_repository_s(config: Path) -> None:
    found = by_request(
        config, max_batch_size=3, instance_group=[{"kind": "KIND_CPU", "count": 2}],
        dynamic_batching={"max_queue_delay_microseconds": 7}, **parameter("label_key", "colour"),
    )  # fmt: skip

    assert (found.spec.max_batch_size, found.spec.max_queue_delay_seconds) == (3, 7e-6)
    assert [group.count for group in found.instance_groups] == [2]
    assert (found.backend, found.filename) == ("torch_state_dict", "weights.pt")
    assert found.parameters == {"architecture": "net:Net", "label_key": "colour"}
    assert found.spec.outputs[0].labels == ("no", "yes")
    assert [sample.name for sample in found.warmup] == ["w"]


def test_the_configuration_that_is_served_may_be_sent_back_with_a_change(config: Path) -> None:
    served = read_config(config, "1").spec.config | {"max_batch_size": 5}

    found = read_config(config, "1", json.dumps(served))

    assert found.spec.config == served


def test_without_a_config_of_its_own_the_files_say_what_a_request_may_repeat(
    tmp_path: Path,
) -> None:
    version = tmp_path / "m" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text("class Model: ...\n")
    path = tmp_path / "m" / "config.pbtxt"

    assert by_request(path, backend="python").backend == "python"
    with pytest.raises(BadModel, match="backend"):
        by_request(path, backend="onnxruntime")


def test_an_ensemble_s_steps_are_the_repository_s(tmp_path: Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    path = tmp_path / "m" / "config.pbtxt"
    steps = (
        'ensemble_scheduling { step [ { model_name: "a" model_version: -1 '
        'input_map { key: "i" value: "x" } output_map { key: "o" value: "y" } } ] }'
    )
    path.write_text(ENSEMBLE + steps)

    assert by_request(path, max_batch_size=4).spec.steps[0].model == "a"
    with pytest.raises(BadModel, match="ensemble_scheduling"):
        by_request(path, ensemble_scheduling={"step": [{"model_name": "b"}]})


def test_a_policy_is_read_from_no_override_that_is_refused(config: Path) -> None:
    with pytest.raises(BadModel, match="runtime"):
        read_policy(config, '{"runtime": "lib.so"}')


def test_no_harmless_field_has_a_member_that_names_a_file() -> None:
    def names(descriptor: Any, seen: tuple[str, ...] = ()) -> set[str]:
        found = set()
        for field in descriptor.fields:
            found.add(field.name)
            if field.message_type is not None and field.message_type.full_name not in seen:
                found |= names(field.message_type, (*seen, field.message_type.full_name))
        return found

    within = {
        name
        for field in proto.ModelConfig.DESCRIPTOR.fields
        if field.name in HARMLESS_FIELDS and field.message_type is not None
        for name in names(field.message_type)
    }
    assert {name for name in within if "file" in name} == {"label_filename", "profile"}
    assert set(FILE_FIELDS) | HARMLESS_FIELDS <= {
        field.name for field in proto.ModelConfig.DESCRIPTOR.fields
    }
