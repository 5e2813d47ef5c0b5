"""Every field of Triton's model_config.proto: honoured, refused, or said to do nothing."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from google.protobuf import text_format
from loaded import session_of
from test_completion import FLOAT, write_onnx
from tritonclient.grpc import model_config_pb2

from shared.errors import BadModel
from worker.backends.onnxruntime import OnnxRuntimeBackend
from worker.devices import Placement
from worker.instance.process import load_backend
from worker.job import InstanceJob
from worker.repository.config.fields import CONFIG_FIELDS, check_fields, row_of
from worker.repository.config.parameters import (
    ARENA_SHRINKAGE,
    TRITON_PARAMETERS,
    arena_shrinkage,
    cuda_options,
    own_threads,
    parameter_notes,
    pipeline_depth,
)
from worker.repository.model_config import read_config
from worker.repository.models import read_model

DOCS = Path(__file__).resolve().parents[2] / "docs" / "repository.md"
GOOD = """
platform: "pytorch_libtorch" max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [4] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [3] } ]
"""


def fields_of(descriptor: Any, prefix: str = "", within: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the path of every field that a config can set, through maps to their values."""
    for field in descriptor.fields:
        inner = field.message_type
        if inner is not None and inner.GetOptions().map_entry:
            inner = inner.fields_by_name["value"].message_type
        if inner is None or inner.full_name in within:
            yield f"{prefix}{field.name}"
        else:
            yield from fields_of(inner, f"{prefix}{field.name}.", (*within, inner.full_name))


PATHS = list(fields_of(model_config_pb2.ModelConfig.DESCRIPTOR))


def parsed(text: str) -> Any:
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_every_field_of_the_proto_has_a_row() -> None:
    assert len(PATHS) > 100
    assert [path for path in PATHS if row_of(path) is None] == []


def test_every_row_is_of_a_field_of_the_proto() -> None:
    rows = [field.path for field in CONFIG_FIELDS]

    unknown = [
        row for row in rows if not any(path == row or path.startswith(f"{row}.") for path in PATHS)
    ]

    assert not unknown
    assert len(set(rows)) == len(rows)


def test_the_page_on_the_repository_shows_the_table_as_it_is() -> None:
    shown = re.findall(r"^\| `([a-z_.]+)` \| (honoured|refused|no effect) \| (.*) \|$",
                       DOCS.read_text(), re.MULTILINE)  # fmt: skip

    assert shown == [tuple(field) for field in CONFIG_FIELDS]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sequence_batching { direct { } }", "sequence_batching { direct { } } is not supported: "),
        ("model_transaction_policy { decoupled: true }", "decoupled true is not supported"),
        ("batch_input [ { target_name: 'n' } ]", "batch_input .*target_name.* is not supported"),
        ("batch_output [ { target_name: 'n' } ]", "batch_output .* is not supported"),
        (
            "input [ { name: 'x' is_shape_tensor: true } ]",
            r"input\[x\].is_shape_tensor true is not",
        ),
        (
            "output [ { is_non_linear_format_io: true } ]",
            r"output\[0\].is_non_linear_format_io true",
        ),
        (
            "instance_group [ { rate_limiter { priority: 2 } } ]",
            r"instance_group\[0\].rate_limiter",
        ),
        ("instance_group [ { name: 'g' passive: true } ]", r"instance_group\[g\].passive true"),
        ("instance_group [ { profile: ['a'] } ]", r"instance_group\[0\].profile \['a'\]"),
        ("cc_model_filenames { key: '7.5' value: 'x' }", r"cc_model_filenames {'7.5': 'x'} is not"),
        ("runtime: 'x.so'", "runtime 'x.so' is not supported: "),
        ("model_operations { op_library_filename: ['x.so'] }", "model_operations .* is not"),
        ("model_repository_agents { agents [ { name: 'checksum' } ] }", "model_repository_agents"),
        (
            "optimization { execution_accelerators { gpu_execution_accelerator [ { name: 'tensorrt'"
            " parameters { key: 'precision_mode' value: 'FP16' } } ] } }",
            r"optimization.execution_accelerators { gpu_execution_accelerator { .*\.\.\. is not",
        ),
    ],
)
def test_what_would_change_answers_or_promises_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_fields(parsed(text))


def test_a_refusal_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m" / "config.pbtxt"
    path.parent.mkdir()
    path.write_text(GOOD + "sequence_batching { }")

    with pytest.raises(BadModel, match="sequence_batching") as refusal:
        read_config(path, "1")

    assert str(refusal.value).startswith(f"{path}: ")


def test_a_field_at_its_default_is_no_reason_to_refuse() -> None:
    text = "input [ { is_shape_tensor: false } ] model_transaction_policy { decoupled: false }"

    assert check_fields(parsed(GOOD + text)) == []


def test_the_level_of_graph_optimisation_is_said_to_be_of_no_use_to_torch(tmp_path: Path) -> None:
    path = tmp_path / "m" / "config.pbtxt"
    path.parent.mkdir()
    path.write_text(GOOD + "optimization { graph { level: 1 } }")

    [note] = read_config(path, "1").notes

    assert note.startswith("optimization.graph has no effect: ")


@pytest.mark.parametrize(
    ("level", "name"), [(-1, "BASIC"), (0, "ENABLE_ALL"), (1, "EXTENDED"), (2, "DISABLE_ALL")]
)
def test_onnx_graphs_are_optimised_as_far_as_the_level_says(
    tmp_path: Path, level: int, name: str
) -> None:
    write_onnx(tmp_path / "m", {"x": (FLOAT, ["n", 3])}, {"y": (FLOAT, ["n", 3])})
    (tmp_path / "m" / "config.pbtxt").write_text(f"optimization {{ graph {{ level: {level} }} }}")
    model = read_model(tmp_path, "m")

    backend = OnnxRuntimeBackend(model.spec, model.file, Placement("cpu"))

    options = session_of(backend).get_session_options()
    assert options.graph_optimization_level.name.endswith(name)


def test_a_level_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    write_onnx(tmp_path / "m", {"x": (FLOAT, ["n", 3])}, {"y": (FLOAT, ["n", 3])})
    (tmp_path / "m" / "config.pbtxt").write_text("optimization { graph { level: 3 } }")
    model = read_model(tmp_path, "m")

    with pytest.raises(
        BadModel, match=r"optimization.graph.level 3: expected one of \[-1, 0, 1, 2"
    ):
        OnnxRuntimeBackend(model.spec, model.file, Placement("cpu"))


def test_a_hint_without_effect_is_accepted_and_said_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "model.pt").write_bytes(b"model")
    hints = "optimization { priority: PRIORITY_MAX cuda { graphs: true } }\n"
    (tmp_path / "m" / "config.pbtxt").write_text(GOOD + hints)

    with caplog.at_level(logging.WARNING):
        read_model(tmp_path, "m")

    where = f"{tmp_path}/m/config.pbtxt"
    assert [record.getMessage().partition(" has no effect: ")[0] for record in caplog.records] == [
        f"{where}: optimization.priority PRIORITY_MAX",
        f"{where}: optimization.cuda {{ graphs: true }}",
    ]


def test_the_page_shows_the_parameters_of_triton_s_backends_as_they_are() -> None:
    shown = re.findall(r"^\| (\w+) \| `([A-Za-z_.]+)` \| (honoured|refused|no effect) \| (.*) \|$",
                       DOCS.read_text(), re.MULTILINE)  # fmt: skip

    assert shown == [tuple(each)[:4] for each in TRITON_PARAMETERS]


def test_the_options_of_cuda_s_provider_go_by_tritons_numbers() -> None:
    asked = {
        "cudnn_conv_algo_search": "1", "arena_extend_strategy": "1",
        "do_copy_in_default_stream": "0", "gpu_mem_limit": "5",
    }  # fmt: skip

    assert cuda_options(asked) == {
        "cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested",
        "do_copy_in_default_stream": "0", "gpu_mem_limit": "5",
    }  # fmt: skip
    assert cuda_options({"gpu_mem_limit": "5", "max_gpu_memory_bytes": "7"}) == {
        "gpu_mem_limit": "7"
    }
    assert cuda_options({}) == {}


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("cudnn_conv_algo_search", "3", "cudnn_conv_algo_search 3: expected a number from 0 to 2"),
        ("arena_extend_strategy", "-1", "arena_extend_strategy -1: expected a number from 0 to 1"),
        ("do_copy_in_default_stream", "yes", "do_copy_in_default_stream 'yes': expected ints"),
        ("gpu_mem_limit", "-2", "gpu_mem_limit -2: expected a number of bytes, or 0"),
        (ARENA_SHRINKAGE, "gpu", "arena_shrinkage 'gpu': expected cpu:0, gpu:0 or cpu:0;gpu:0"),
    ],
)
def test_other_options_of_cuda_s_provider_are_refused(key: str, value: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parameter_notes("onnxruntime", {key: value})


def test_memory_is_given_back_on_the_devices_that_the_instance_has() -> None:
    both = {ARENA_SHRINKAGE: "cpu:0;gpu:1"}

    assert arena_shrinkage(both) == "cpu:0"
    assert arena_shrinkage(both, "0") == "cpu:0;gpu:0"
    assert arena_shrinkage({ARENA_SHRINKAGE: "gpu:0"}) == arena_shrinkage({}) == ""


def parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'


@pytest.mark.parametrize(
    ("backend", "key", "value"),
    [
        ("python", "EXECUTION_ENV_PATH", "$$TRITON_MODEL_DIRECTORY/env.tar.gz"),
        ("python", "TRITON_BATCH_STRATEGY_PATH", "b.so"),
    ],
)
def test_a_parameter_that_cannot_be_honoured_is_refused(
    tmp_path: Path, backend: str, key: str, value: str
) -> None:
    path = tmp_path / "m" / "config.pbtxt"
    path.parent.mkdir()
    config = GOOD.replace('platform: "pytorch_libtorch"', f'backend: "{backend}"')
    path.write_text(config + parameter(key, value))

    with pytest.raises(BadModel, match=rf"parameters\[{key}\] '{re.escape(value)}' is not supp"):
        read_config(path, "1")


@pytest.mark.parametrize("depth", ["0", "3", "two"])
def test_an_instance_has_one_batch_in_hand_or_two(depth: str) -> None:
    assert [pipeline_depth(each) for each in ({}, {"pipeline_depth": "2"})] == [1, 2]
    with pytest.raises(ValueError, match=f"pipeline_depth '?{depth}'?: expected"):
        parameter_notes("pytorch", {"pipeline_depth": depth})


@pytest.mark.parametrize(
    ("key", "value", "is_said"),
    [
        ("INFERENCE_MODE", "true", False),
        ("INFERENCE_MODE", "false", True),
        ("DISABLE_OPTIMIZED_EXECUTION", "true", True),
        ("DISABLE_OPTIMIZED_EXECUTION", "False", False),
        ("ENABLE_NVFUSER", "true", True),
        ("ENABLE_WHAT_COMES", "true", True),
        ("label_key", "kind", False),
        ("NUM_THREADS", "2", False),
    ],
)
def test_a_parameter_without_effect_is_said_in_the_notes(
    tmp_path: Path, key: str, value: str, is_said: bool
) -> None:
    path = tmp_path / "m" / "config.pbtxt"
    path.parent.mkdir()
    path.write_text(GOOD + parameter(key, value))

    notes = read_config(path, "1").notes

    assert [note.startswith(f"parameters[{key}] '{value}' has no") for note in notes] == (
        [True] if is_said else []
    )


def test_a_model_s_own_code_gets_every_parameter_unsaid() -> None:
    assert parameter_notes("python", {"MY_OWN": "1", "INFERENCE_MODE": "no"}) == []
    assert parameter_notes("onnxruntime", {"session.x": "1"}) != []


@pytest.mark.parametrize(
    ("backend", "parameters", "threads"),
    [
        ("pytorch", {"INTRA_OP_THREAD_COUNT": "3"}, 3),
        ("onnxruntime", {"intra_op_thread_count": "2"}, 2),
        ("onnxruntime", {"intra_op_thread_count": "0"}, 0),
        ("python", {"NUM_THREADS": "7"}, 0),
    ],
)
def test_a_config_may_say_how_many_threads_an_instance_has(
    backend: str, parameters: dict[str, str], threads: int
) -> None:
    assert own_threads(backend, parameters) == threads


@pytest.mark.parametrize("value", ["many", "-1"])
def test_a_number_of_threads_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="NUM_THREADS"):
        parameter_notes("pytorch", {"NUM_THREADS": value})


def test_an_instance_runs_with_the_threads_of_its_config(tmp_path: Path) -> None:
    write_onnx(tmp_path / "m", {"x": (FLOAT, ["n", 4])}, {"y": (FLOAT, ["n", 4])})
    (tmp_path / "m" / "config.pbtxt").write_text(parameter("intra_op_thread_count", "3"))
    model = read_model(tmp_path, "m")
    job = InstanceJob(
        "i", model.spec, model.config.backend, model.file, Placement("cpu", 1),
        "redis://", "x", 1.0, "INFO",
    )  # fmt: skip
    before = torch.get_num_threads()

    backend = load_backend(job)

    try:
        assert session_of(backend).get_session_options().intra_op_num_threads == 3
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
