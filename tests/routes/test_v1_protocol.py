"""Version 1 of the protocol, by rows and by columns, on a real server and worker."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from answers import answer, refusal
from ferry_processes import free_port, running_gunicorn, running_worker
from onnx import TensorProto, helper
from PIL import Image
from registered import register, spec
from stand_ins import onnx_graph, text_model, torchscript
from werkzeug.test import TestResponse
from wire import get, post

from shared.model_spec import TensorSpec
from shared.settings import Settings

LARGEST = 3.4028234663852886e38
PICTURE = """
parameters { key: "input_kind" value { string_value: "image" } }
"""


class Identity(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Arithmetic(torch.nn.Module):
    def forward(self, b: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return a + b, a - b


class Uneven(torch.nn.Module):
    """Returns x, and its first row."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x[0:1]


class Mean(torch.nn.Module):
    """Returns the mean of each colour of a picture [3, height, width]."""

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        return picture.mean(dim=(2, 3))


def config(max_batch_size: int, inputs: list[str], outputs: list[str], more: str = "") -> str:
    """Write a config.pbtxt of tensors given as `name datatype [dims]`."""
    sides = [
        f'{side} [ {{ name: "{name}" data_type: TYPE_{datatype} dims: {dims} }} ]'
        for side, items in (("input", inputs), ("output", outputs))
        for name, datatype, dims in (item.split(" ", 2) for item in items)
    ]
    return "\n".join([f"max_batch_size: {max_batch_size}", *sides, more])


def echo_strings(repository: Path, name: str, output: str) -> None:
    nodes = [helper.make_node("Identity", ["x"], [output])]
    tensors = [
        helper.make_tensor_value_info(n, TensorProto.STRING, ["n", 2]) for n in ("x", output)
    ]
    text = config(4, ["x STRING [2]"], [f"{output} STRING [2]"])
    onnx_graph(repository, name, text, nodes, tensors[:1], tensors[1:])


def write_models(repository: Path) -> None:
    echo = config(4, ["x FP32 [2]"], ["y__0 FP32 [2]"])
    torchscript(repository, "echo", Identity(), echo)
    whole = config(4, ["x INT8 [2]"], ["y__0 INT8 [2]"])
    torchscript(repository, "whole", Identity(), whole)
    two = ["sum__0 FP32 [2, 3]", "difference__1 FP32 [2, 3]"]
    torchscript(
        repository, "arithmetic", Arithmetic(), config(4, ["a FP32 [2, 3]", "b FP32 [2, 3]"], two)
    )
    unbatched = config(0, ["x FP32 [-1, 2]"], ["y__0 FP32 [-1, 2]"])
    torchscript(repository, "unbatched", Identity(), unbatched)
    uneven = config(0, ["x FP32 [-1, 2]"], ["all__0 FP32 [-1, 2]", "first__1 FP32 [-1, 2]"])
    torchscript(repository, "uneven", Uneven(), uneven)
    picture = config(2, ["picture FP32 [3, 4, 4]"], ["mean__0 FP32 [3]"], PICTURE)
    torchscript(repository, "mean", Mean(), picture)
    echo_strings(repository, "strings", "y")
    echo_strings(repository, "sealed", "y_bytes")
    text_model(repository, "counts", max_length=8, truncate=True)


@pytest.fixture(scope="module")
def port(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A server's port; besides the models that a worker serves it knows two that nobody serves."""
    models = tmp_path_factory.mktemp("models")
    write_models(models)
    settings = Settings(
        redis_url=redis_url,
        key_prefix="v1",
        models=str(models),
        port=free_port(),
        api_processes=1,
        request_timeout_seconds=20.0,
    )
    with running_worker(settings), running_gunicorn(settings):
        x = TensorSpec(name="x", datatype="FP32", dims=(2,))
        register(settings, spec("loading", x), ready=False)
        half = (TensorSpec(name="y", datatype="FP16", dims=(2,)),)
        register(settings, spec("half", x).model_copy(update={"outputs": half}))
        yield settings.port


def predict(port: int, model: str, **body: Any) -> Any:
    """Return the answer without its timings."""
    found = answer(post(port, f"/v1/models/{model}:predict", body))
    assert found.pop("timings")["batch_size"] >= 1
    return found


def refused(port: int, model: str, **body: Any) -> str:
    return refusal(post(port, f"/v1/models/{model}:predict", body))


def b64(data: bytes) -> dict[str, str]:
    return {"b64": b64encode(data).decode()}


def solid(*colour: int) -> dict[str, str]:
    """Return a PNG of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7), colour).save(buffer, "PNG")
    return b64(buffer.getvalue())


# Rows and columns.


def test_rows_of_a_model_with_one_input_and_one_output_are_plain_values(port: int) -> None:
    rows = [[1.0, 2.0], [3.5, -4.0]]

    assert predict(port, "echo", instances=rows) == {"predictions": rows}


def test_rows_may_name_the_only_input(port: int) -> None:
    rows = [{"x": [1.0, 2.0]}, {"x": [3.0, 4.0]}]

    assert predict(port, "echo", instances=rows) == {"predictions": [[1.0, 2.0], [3.0, 4.0]]}


def test_rows_of_several_inputs_and_outputs_are_objects(port: int) -> None:
    ones, tens = [[1] * 3] * 2, [[10] * 3] * 2

    body = predict(port, "arithmetic", instances=[{"a": tens, "b": ones}, {"b": tens, "a": ones}])

    assert body["predictions"] == [
        {"sum__0": [[11] * 3] * 2, "difference__1": [[9] * 3] * 2},
        {"sum__0": [[11] * 3] * 2, "difference__1": [[-9] * 3] * 2},
    ]


def test_columns_of_a_model_with_one_input_and_one_output_are_plain_values(port: int) -> None:
    rows = [[1.0, 2.0], [3.5, -4.0]]

    assert predict(port, "echo", inputs=rows) == {"outputs": rows}
    assert predict(port, "echo", inputs={"x": rows}) == {"outputs": rows}


def test_columns_of_several_inputs_and_outputs_are_objects_of_whole_batches(port: int) -> None:
    ones, tens = [[[1] * 3] * 2] * 2, [[[10] * 3] * 2] * 2

    body = predict(port, "arithmetic", inputs={"b": ones, "a": tens})

    assert body["outputs"] == {"sum__0": [[[11] * 3] * 2] * 2, "difference__1": [[[9] * 3] * 2] * 2}


@pytest.mark.parametrize("rows", [1, 4])
def test_version_1_answers_what_version_2_does(port: int, rows: int) -> None:
    a, b = np.random.default_rng(0).normal(size=(2, rows, 2, 3)).round(3)
    tensors = [
        {"name": name, "shape": [rows, 2, 3], "datatype": "FP32", "data": array.tolist()}
        for name, array in (("a", a), ("b", b))
    ]

    ours = predict(port, "arithmetic", inputs={"a": a.tolist(), "b": b.tolist()})["outputs"]
    theirs = answer(post(port, "/v2/models/arithmetic/infer", {"inputs": tensors}))["outputs"]

    for tensor in theirs:
        assert np.ravel(ours[tensor["name"]]).tolist() == tensor["data"]


def test_a_version_may_be_named(port: int) -> None:
    body = {"instances": [[1, 2]], "signature_name": "serving_default"}

    found = answer(post(port, "/v1/models/echo/versions/1:predict", body))

    assert found["predictions"] == [[1.0, 2.0]]
    missing = post(port, "/v1/models/echo/versions/7:predict", body)
    refusal(missing, 404, "unknown_model")


def test_numbers_become_the_datatype_of_the_model(port: int) -> None:
    assert predict(port, "whole", instances=[[-128, 127]]) == {"predictions": [[-128, 127]]}
    assert "out of the range of INT8" in refused(port, "whole", instances=[[0, 128]])
    assert "fractions" in refused(port, "whole", instances=[[0, 1.5]])
    assert "booleans" in refused(port, "whole", instances=[[0, True]])


def test_what_json_cannot_say_is_answered_as_null(port: int) -> None:
    huge = [[LARGEST] * 3] * 2

    body = predict(port, "arithmetic", instances=[{"a": huge, "b": huge}])

    assert body["predictions"] == [
        {"sum__0": [[None] * 3] * 2, "difference__1": [[0.0] * 3] * 2},
    ]


# Models without a batch dimension: their first dimension is the rows.


@pytest.mark.parametrize("rows", [1, 5])
def test_rows_of_a_model_without_batches_are_its_first_dimension(port: int, rows: int) -> None:
    values = [[float(index), 0.5] for index in range(rows)]

    assert predict(port, "unbatched", instances=values) == {"predictions": values}
    assert predict(port, "unbatched", inputs=values) == {"outputs": values}
    assert "3 dimensions" in refused(port, "unbatched", instances=[values])


def test_outputs_without_common_rows_are_answered_in_columns_only(port: int) -> None:
    values = [[1.0, 2.0], [3.0, 4.0]]

    columns = predict(port, "uneven", inputs=values)

    assert columns == {"outputs": {"all__0": values, "first__1": [[1.0, 2.0]]}}
    assert 'ask with "inputs"' in refused(port, "uneven", instances=values)


# Strings, pictures, texts.


def test_strings_and_base64_are_taken_for_bytes(port: int) -> None:
    rows = [["schön", b64("好".encode())], ["", b64(b"plain")]]

    assert predict(port, "strings", instances=rows) == {
        "predictions": [["schön", "好"], ["", "plain"]]
    }


def test_outputs_named_bytes_are_answered_in_base64(port: int) -> None:
    body = predict(port, "sealed", inputs=[["a", "bc"]])

    assert body == {"outputs": [[b64(b"a"), b64(b"bc")]]}


def test_base64_may_be_wrapped_and_lack_its_padding(port: int) -> None:
    bare, wrapped = {"b64": "YQ"}, {"b64": "YWJj\nZGVm\n"}

    assert predict(port, "strings", instances=[[bare, wrapped]])["predictions"] == [["a", "abcdef"]]


@pytest.mark.parametrize("form", ["values", "objects", "columns", "named columns"])
def test_base64_pictures_are_prepared_for_the_model(port: int, form: str) -> None:
    pictures = [solid(10, 20, 30), solid(255, 0, 1)]
    bodies: dict[str, dict[str, Any]] = {
        "values": {"instances": pictures},
        "objects": {"instances": [{"picture": each} for each in pictures]},
        "columns": {"inputs": pictures},
        "named columns": {"inputs": {"picture": pictures}},
    }

    (values,) = predict(port, "mean", **bodies[form]).values()

    assert values == [[10, 20, 30], [255, 0, 1]]


def test_a_model_of_pictures_takes_its_own_tensor_too(port: int) -> None:
    row = np.full((3, 4, 4), 7.0).tolist()

    assert predict(port, "mean", instances=[row]) == {"predictions": [[7.0, 7.0, 7.0]]}


def test_bad_pictures_are_refused(port: int) -> None:
    assert "picture 1 is in no format that Ferry knows" in refused(
        port, "mean", instances=[solid(1, 2, 3), b64(b"text")]
    )
    assert "not base64" in refused(port, "mean", instances=[{"b64": "a!"}])
    assert "batch-size must be <= 2" in refused(port, "mean", instances=[solid(1, 2, 3)] * 3)
    assert refused(port, "mean", instances=[solid(1, 2, 3), [[1.0]]])


@pytest.mark.parametrize("key", ["instances", "inputs"])
def test_texts_are_tokenised_for_a_model_of_texts(port: int, key: str) -> None:
    (values,) = predict(port, "counts", **{key: ["good good bad", "the food was bad"]}).values()

    assert values == [[1.0, 2.0], [1.0, 0.0]]


def test_a_model_of_texts_takes_its_own_tensors_too(port: int) -> None:
    body = predict(port, "counts", instances=[{"input_ids": [4, 4], "attention_mask": [1, 1]}])

    assert body == {"predictions": [[0.0, 2.0]]}
    assert "text 1 is empty" in refused(port, "counts", instances=["good", " "])
    assert "batch-size must be <= 8" in refused(port, "counts", inputs=["good"] * 9)
    assert "names no inputs" in refused(port, "counts", instances=["good", 1])


# Now, later, once.


def test_a_request_may_be_answered_later(port: int) -> None:
    body = {"instances": [{"a": [[1.0] * 3] * 2, "b": [[2.0] * 3] * 2}]}
    path = "/v1/models/arithmetic:predict"
    at_once = answer(post(port, path, body))

    accepted = post(port, path, body, {"Prefer": "respond-async"})
    later = answer(get(port, accepted.headers["Location"] + "?wait=20"))

    assert accepted.status_code == 202
    assert later.keys() == at_once.keys()
    assert later["predictions"] == at_once["predictions"]


def test_a_key_gives_the_same_answer_again(port: int) -> None:
    def ask(**body: Any) -> TestResponse:
        return post(port, "/v1/models/echo:predict", body, {"Idempotency-Key": "mine"})

    assert answer(ask(instances=[[1, 2]])) == answer(ask(instances=[[1, 2]]))
    refusal(ask(instances=[[1, 3]]), 422, "idempotency_conflict")
    refusal(ask(inputs=[[1, 2]]), 422, "idempotency_conflict")


def test_a_deadline_is_kept(port: int) -> None:
    response = post(
        port, "/v1/models/echo:predict", {"instances": [[1, 2]]}, {"X-Request-Timeout": "1e-5"}
    )

    assert refusal(response, 503, "request_expired") == "Request timeout expired"


# What is served.


def test_the_models_are_listed(port: int) -> None:
    body = answer(get(port, "/v1/models"))

    assert body["models"] == sorted(body["models"])
    assert {"echo", "counts", "loading"} <= set(body["models"])


def test_a_model_is_ready_or_503_or_404(port: int) -> None:
    told = answer(get(port, "/v1/models/echo"))
    assert (told["name"], told["ready"], told["id"]) == ("echo", True, "echo")
    assert "not ready" in refusal(get(port, "/v1/models/loading"), 503, "model_not_ready")
    refusal(get(port, "/v1/models/nothing"), 404, "unknown_model")


def test_the_state_of_a_version_is_told_in_tensorflow_servings_words(port: int) -> None:
    ready = answer(get(port, "/v1/models/echo/versions/1"))
    loading = answer(get(port, "/v1/models/loading/versions/1"))

    assert ready["model_version_status"] == [
        {
            "version": "1",
            "state": "AVAILABLE",
            "status": {"error_code": "OK", "error_message": ""},
        }
    ]
    assert loading["model_version_status"][0]["state"] == "LOADING"
    refusal(get(port, "/v1/models/echo/versions/2"), 404, "unknown_model")
    refusal(get(port, "/v1/models/echo/versions/x"), 404, "unknown_model")


# Refusals.


@pytest.mark.parametrize("verb", ["classify", "regress", "explain"])
@pytest.mark.parametrize("version", ["", "/versions/1"])
def test_other_verbs_of_the_protocol_are_not_offered(port: int, verb: str, version: str) -> None:
    response = post(port, f"/v1/models/echo{version}:{verb}", {"examples": [{"x": 1}]})

    assert f":{verb}" in refusal(response, 501, "unsupported")


def test_any_other_verb_is_no_route(port: int) -> None:
    refusal(post(port, "/v1/models/echo:guess", {}), 404, "unknown_route")
    refusal(post(port, "/v1/models/nothing:predict", {}), 404, "unknown_model")


@pytest.mark.parametrize(
    ("model", "body", "said"),
    [
        ("echo", {}, '"instances" (rows) or "inputs" (columns)'),
        ("echo", {"instances": [[1, 2]], "inputs": [[1, 2]]}, "one of them"),
        ("echo", {"instances": 5}, "must be a list, not a number"),
        ("echo", {"instances": [1, 2]}, "shape [2] has 1 dimensions, the model wants [-1, 2]"),
        ("echo", {"instances": [[1, 2, 3]]}, "shape [1, 3], the model wants [-1, 2]"),
        ("echo", {"instances": [[1, 2], [3]]}, "differ in length"),
        ("echo", {"instances": [[1, 2]] * 5}, "batch-size must be <= 4"),
        ("echo", {"instances": [["a", "b"]]}, "strings where numbers of FP32 belong"),
        ("echo", {"instances": [[1, {"b64": "YQ=="}]]}, "other things"),
        ("echo", {"instances": [{"z": [1, 2]}]}, "instances[0] has ['z'], the inputs of 'echo'"),
        ("echo", {"instances": [{"x": [1, 2]}, [1, 2]]}, "instances[1] must be an object"),
        ("echo", {"inputs": 5}, "must be a list, not a number"),
        ("echo", {"inputs": {"z": [[1, 2]]}}, "\"inputs\" has ['z']"),
        ("echo", {"instances": [[1, 2]], "signature_name": "other"}, '"serving_default"'),
        ("echo", {"instances": [[1, 2]], "signature_name": 7}, '"serving_default"'),
        ("arithmetic", {"instances": [[1, 2]]}, "names no inputs"),
        ("arithmetic", {"inputs": [[1, 2]]}, "names no inputs"),
        ("arithmetic", {"instances": [{"a": [[1] * 3] * 2}]}, "instances[0] has ['a']"),
        (
            "arithmetic",
            {"inputs": {"a": [[[1] * 3] * 2], "b": [[[1] * 3] * 2] * 2}},
            "the same batch size, not [1, 2]",
        ),
        ("strings", {"instances": [["a", 5]]}, 'strings or {"b64": "..."}'),
        ("strings", {"instances": [["a", {"b64": "!"}]]}, "not base64"),
        ("strings", {"instances": [["a", {"b64": 5}]]}, "strings or"),
        ("strings", {"instances": [["a", "b"], ["c"]]}, "lists of the same length"),
        ("half", {"instances": [[1, 2]]}, "FP16, which JSON cannot carry"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(
    port: int, model: str, body: dict[str, Any], said: str
) -> None:
    assert said in refused(port, model, **body)


@pytest.mark.parametrize("model", ["echo", "strings"])
@pytest.mark.parametrize("depth", [70, 200, 900, 3000])
def test_deep_nesting_is_refused(port: int, model: str, depth: int) -> None:
    for key in (b"instances", b"inputs"):
        body = b'{"%s": %s1%s}' % (key, b"[" * depth, b"]" * depth)

        refusal(post(port, f"/v1/models/{model}:predict", body))


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"instances": [[1, 2]'])
def test_what_is_no_json_object_is_refused(port: int, body: bytes) -> None:
    refusal(post(port, "/v1/models/echo:predict", body))
