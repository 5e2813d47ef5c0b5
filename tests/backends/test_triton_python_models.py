"""Triton's Python models run as they stand; each request has its own response, or its own error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_backend import claimed
from loaded import PLAIN, floats, load, own_imports, spec, tensor, texts
from triton_models import ADD_SUB, ASYNC, BLS, DLPACK, PICKY, SENDER, STRINGS
from waiting import wait_until

from shared.datatypes import Array
from shared.errors import BadModel, BadModelOutput, BadRequest, ModelFailed, Unsupported
from shared.messages import InferResult
from shared.model_spec import ModelSpec, TensorSpec
from shared.request_queue.model_statistics import Pass
from worker.backends import triton_python_backend_utils as pb_utils
from worker.backends.base import RequestTensors
from worker.backends.triton_python import TritonPythonBackend
from worker.instance import batch
from worker.instance.batch import answer_batch

X, Y = tensor("x"), tensor("y")


@pytest.fixture(autouse=True)
def imports() -> Iterator[None]:
    with own_imports():
        yield


def triton(directory: Path, code: str, described: ModelSpec) -> TritonPythonBackend:
    file = directory / "m" / "1" / "model.py"
    file.parent.mkdir(parents=True)
    file.write_text(code)
    backend = load("python", described, file)
    assert isinstance(backend, TritonPythonBackend)
    return backend


def with_config(inputs: list[TensorSpec], outputs: list[TensorSpec]) -> ModelSpec:
    """Describe a model with the configuration that `initialize` is given as JSON."""
    config = {
        kind: [
            {"name": each.name, "data_type": f"TYPE_{each.datatype}", "dims": list(each.dims)}
            for each in tensors
        ]
        for kind, tensors in (("input", inputs), ("output", outputs))
    }
    return spec(inputs, outputs).model_copy(update={"config": config})


def test_add_and_subtract_answers_in_the_declared_types(tmp_path: Path) -> None:
    inputs = [tensor("INPUT0", "FP32", 4), tensor("INPUT1", "FP32", 4)]
    outputs = [tensor("OUTPUT0", "FP32", 4), tensor("OUTPUT1", "INT32", 4)]
    backend = triton(tmp_path, ADD_SUB, with_config(inputs, outputs))

    found = backend.forward({"INPUT0": floats([5, 6, 7, 8]), "INPUT1": floats([1] * 4)}, PLAIN)

    assert found["OUTPUT0"].tolist() == [[6.0, 7.0, 8.0, 9.0]]
    assert found["OUTPUT1"].dtype == np.int32
    assert found["OUTPUT1"].tolist() == [[4, 5, 6, 7]]
    backend.close()


def test_initialize_is_told_everything_as_text(tmp_path: Path) -> None:
    code = "class TritonPythonModel:\n    def initialize(self, args):\n        self.args = args\n"
    code += "    def execute(self, requests):\n        return []\n"
    described = with_config([X], [Y])
    backend = triton(tmp_path, code, described)

    args = backend._model.args

    assert json.loads(args["model_config"]) == described.config
    assert args | {"model_config": ""} == {
        "model_config": "",
        "model_instance_kind": "CPU",
        "model_instance_name": "m_0",
        "model_instance_device_id": "0",
        "model_repository": str(tmp_path / "m"),
        "model_version": "1",
        "model_name": "m",
    }


def test_strings_are_object_arrays_of_bytes(tmp_path: Path) -> None:
    outputs = [tensor("UPPER", "BYTES", 1), tensor("LENGTH", "INT32", 1)]
    backend = triton(tmp_path, STRINGS, spec([tensor("TEXT", "BYTES", 1)], outputs))

    found = backend.forward({"TEXT": texts("schön", "")}, PLAIN)

    assert found["UPPER"].tolist() == [["SCHÖN".encode()], [b""]]
    assert found["LENGTH"].tolist() == [[6], [0]]


def test_torch_over_dlpack_answers_only_what_is_wanted(tmp_path: Path) -> None:
    backend = triton(tmp_path, DLPACK, spec([X], [Y, tensor("z")]))
    requests = [
        RequestTensors("a", {"x": floats([1, 2])}, ("y",), {}),
        RequestTensors("b", {"x": floats([3, 4])}, (), {}),
    ]

    one, both = backend.answer_each(requests, PLAIN)

    assert isinstance(one, dict) and isinstance(both, dict)
    assert {name: array.tolist() for name, array in one.items()} == {"y": [[1.0, 2.0]]}
    assert both["y"].tolist() == [[3.0, 4.0]]
    assert both["z"].tolist() == [[9.0, 12.0]]


def test_outside_of_a_worker_there_are_no_other_models(tmp_path: Path) -> None:
    backend = triton(tmp_path, BLS, spec([X], [Y]))

    with pytest.raises(pb_utils.TritonModelException, match="'other': other models are there in a"):
        backend.forward({"x": floats([1, 2])}, PLAIN)


def answers(
    backend: TritonPythonBackend, rows: list[Array], outputs: tuple[str, ...] = ()
) -> tuple[list[Any], Any]:
    """Answer one batch; return each request's y, or its error, and the batch's costs."""
    asked = [claimed(str(i), x, outputs=outputs) for i, x in enumerate(rows)]
    answered = answer_batch(asked, spec([X], [Y]), backend, "i")
    results = [InferResult.decode(body) for body in answered.results]
    found = [result.error or result.outputs[0].array().tolist() for result in results]
    return found, results


def test_an_error_response_fails_its_own_request_only(tmp_path: Path) -> None:
    backend = triton(tmp_path, PICKY, spec([X], [Y]))

    rows = [floats([1, 1]), floats([-1, 1]), floats([0, 1]), floats([2, 2], [3, 3])]
    (first, negative, zero, last), results = answers(backend, rows)

    assert first == [[2.0, 2.0]]
    assert isinstance(negative, BadRequest) and str(negative) == "negative"
    assert isinstance(zero, ModelFailed) and str(zero) == "zero"
    assert last == [[4.0, 4.0], [6.0, 6.0]]
    assert (results[0].timings.batch_size, results[3].timings.batch_size) == (5, 5)


def test_a_model_that_raises_is_asked_in_halves_until_the_culprit_is_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    backend = triton(tmp_path, PICKY, spec([X], [Y]))

    found, _ = answers(backend, [floats([i, i]) for i in (1, 2, 13, 3)])

    assert [found[i] for i in (0, 1, 3)] == [[[2.0, 2.0]], [[4.0, 4.0]], [[6.0, 6.0]]]
    assert isinstance(found[2], ModelFailed)
    assert "RuntimeError: cannot stand 13" in str(found[2])
    assert capfd.readouterr().out.split("\n")[:-1] == [
        f"{count} requests" for count in (4, 2, 2, 1, 1)
    ]


RETURNS = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return {}
"""


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("None", "execute returned None responses to 1 requests"),
        ("[]", "execute returned 0 responses to 1 requests"),
        ("[None]", "execute returned None for an InferenceResponse"),
        ("[pb_utils.InferenceResponse()]", "output 'y': the model did not return it"),
        (
            "[pb_utils.InferenceResponse([pb_utils.Tensor('y', np.zeros((3, 2), np.float32))])]",
            r"output 'y': shape \[3, 2\] does not have one row for each of the 1 rows",
        ),
        (
            "[pb_utils.InferenceResponse([pb_utils.Tensor('y', np.zeros((1, 2)))])]",
            "output 'y': datatype FP64, the config declares FP32",
        ),
    ],
)
def test_a_wrong_return_is_answered_as_such(tmp_path: Path, returned: str, message: str) -> None:
    backend = triton(tmp_path, RETURNS.format(returned), spec([X], [Y]))

    (found,), _ = answers(backend, [floats([1, 1])])

    assert isinstance(found, BadModelOutput)
    with pytest.raises(BadModelOutput, match=message):
        raise found


def test_a_request_shows_its_id_parameters_and_model(tmp_path: Path) -> None:
    code = RETURNS.format(
        "[pb_utils.InferenceResponse(error=pb_utils.TritonError("
        "f'{r.request_id()} {r.parameters()} {r.model_name()} {r.model_version()} "
        "{r.correlation_id()} {r.is_cancelled()} {r.inputs()[0].triton_dtype()}', "
        "pb_utils.TritonError.UNSUPPORTED)) for r in requests]"
    )
    backend = triton(tmp_path, code, spec([X], [Y]))

    (error,) = backend.answer_each(
        [RequestTensors("a7", {"x": floats([1, 1])}, (), {"k": 1})], PLAIN
    )

    assert isinstance(error, Unsupported)
    assert str(error) == 'a7 {"k": 1} m 1 0 False TYPE_FP32'


def test_a_decoupled_model_and_one_without_execute_are_refused(tmp_path: Path) -> None:
    decoupled = spec([X], [Y]).model_copy(
        update={"config": {"model_transaction_policy": {"decoupled": True}}}
    )

    with pytest.raises(BadModel, match="decoupled models are not offered"):
        triton(tmp_path, PICKY, decoupled)
    with pytest.raises(BadModel, match="TritonPythonModel has no execute"):
        triton(tmp_path / "b", "class TritonPythonModel: ...\n", spec([X], [Y]))


@pytest.mark.parametrize(
    ("name", "numpy_type"),
    [("TYPE_FP32", np.float32), ("TYPE_STRING", np.object_), ("TYPE_BOOL", np.bool_)],
)
def test_triton_names_of_types_are_numpy_types(name: str, numpy_type: type[Any]) -> None:
    assert pb_utils.triton_string_to_numpy(name) is numpy_type


def test_what_is_looked_for_by_name_and_is_not_there_is_none() -> None:
    request = pb_utils.InferenceRequest(inputs=[pb_utils.Tensor("x", floats([1]))])
    response = pb_utils.InferenceResponse([pb_utils.Tensor("y", floats([1]))])

    assert pb_utils.get_input_tensor_by_name(request, "z") is None
    assert pb_utils.get_output_tensor_by_name(response, "z") is None
    assert pb_utils.get_output_tensor_by_name(response, "y") is response.output_tensors()[0]
    assert pb_utils.get_input_config_by_name({"input": [{"name": "x"}]}, "x") == {"name": "x"}
    assert pb_utils.get_output_config_by_name({"output": []}, "x") is None


def test_names_may_be_bytes_as_string_tensors_have_them() -> None:
    request = pb_utils.InferenceRequest(
        model_name=texts("other")[0][0],
        requested_output_names=[b"y"],  # type: ignore[list-item]
        inputs=[pb_utils.Tensor(b"x", floats([1]))],  # type: ignore[arg-type]
    )

    assert (request.model_name(), request.requested_output_names()) == ("other", ["y"])
    assert request.inputs()[0].name() == "x"
    assert pb_utils.TritonError(b"why").message() == "why"  # type: ignore[arg-type]


def test_bytes_have_no_dlpack_and_lists_are_no_tensors() -> None:
    with pytest.raises(pb_utils.TritonModelException, match="tensor 't': BYTES have no DLPack"):
        pb_utils.Tensor("t", texts("a")).to_dlpack()
    with pytest.raises(pb_utils.TritonModelException, match="expected a numpy array, not a list"):
        pb_utils.Tensor("t", [1, 2])  # type: ignore[arg-type]


def test_only_the_requests_that_are_answered_are_counted_as_inferences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = triton(tmp_path, PICKY, spec([X], [Y]))
    counted: list[Pass] = []
    monkeypatch.setattr(
        batch, "encode_costs", lambda *given: counted.extend(given[1]) or (b"", b"")
    )

    answers(backend, [floats([1, 1]), floats([-1, 1]), floats([2, 2], [3, 3])])

    ((served, rows, _, compute_seconds, _),) = counted
    assert [item.id for item in served] == ["0", "2"]
    assert rows == 4
    assert compute_seconds > 0


def test_coroutines_are_awaited_in_a_loop_that_goes_on_between_batches(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    backend = triton(tmp_path, ASYNC, spec([X], [Y]))

    found, _ = answers(backend, [floats([i, i]) for i in (1, 2, 13, 3)])
    ticks = backend._model.ticks
    wait_until(lambda: backend._model.ticks > ticks, 10, "the loop goes on")
    backend.close()

    assert [found[i] for i in (0, 1, 3)] == [[[2.0, 2.0]], [[4.0, 4.0]], [[6.0, 6.0]]]
    assert isinstance(found[2], ModelFailed)
    assert "SystemExit: cannot stand 13" in str(found[2])
    assert "finalized" in capfd.readouterr().out


def test_a_response_may_be_sent_by_the_request_s_sender(tmp_path: Path) -> None:
    backend = triton(tmp_path, SENDER, spec([X], [Y]))

    (first, none, last), _ = answers(backend, [floats([i, i]) for i in (1, -1, 3)])

    assert (first, last) == ([[2.0, 2.0]], [[6.0, 6.0]])
    assert isinstance(none, BadModelOutput)
    assert "for an InferenceResponse" in str(none)


def test_a_second_response_is_what_decoupled_models_do() -> None:
    sender = pb_utils.InferenceRequest().get_response_sender()
    response = pb_utils.InferenceResponse()
    sender.send(response)

    with pytest.raises(pb_utils.TritonModelException, match="send one response each"):
        sender.send(response)
    sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
    with pytest.raises(pb_utils.TritonModelException, match="closed by its final flag"):
        sender.send(response)


def test_names_of_triton_s_module_are_there_or_say_why_not(tmp_path: Path) -> None:
    code = "import triton_python_backend_utils as pb_utils\nDIRECTORY = pb_utils.get_model_dir()\n"
    code += "class TritonPythonModel:\n    directory = DIRECTORY\n    def execute(self, r): ...\n"
    backend = triton(tmp_path, code, spec([X], [Y]))
    request = pb_utils.InferenceRequest(preferred_memory=pb_utils.PreferredMemory(0))
    metric = pb_utils.MetricFamily("n", "d", pb_utils.MetricFamily.GAUGE).Metric({"l": "v"})
    metric.set(4)
    metric.increment(1)

    assert backend._model.directory == str(tmp_path / "m" / "1")
    assert request.trace().get_context() is None
    assert metric.value() == 5
    assert pb_utils.TRITON_STRING_TO_NUMPY["TYPE_STRING"] is np.object_
    assert pb_utils.TritonModelException("why").message() == "why"
    assert str(pb_utils.TritonError("why")) == "why"
    with pytest.raises(pb_utils.TritonModelException, match="'other': models cannot load, unload"):
        pb_utils.load_model(model_name="other", config="{}")
    with pytest.raises(pb_utils.TritonModelException, match="cannot be rescheduled"):
        request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
