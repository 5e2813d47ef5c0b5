"""Whatever a model may return becomes the declared outputs, or is refused by its output's name."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from loaded import PLAIN, floats, load, own_imports, spec, tensor
from scripted_models import save_scripted

from shared.datatypes import Array
from shared.errors import BadModel, BadModelOutput
from worker.backends.torch_model import Argument, TorchBackend

X = floats([1, 2], [3, 4])


@pytest.fixture(autouse=True)
def imports() -> Iterator[None]:
    with own_imports():
        yield


class Scores(NamedTuple):
    logits: torch.Tensor
    boxes: torch.Tensor


def answers(answer: Any, *outputs: str, datatype: str = "FP32") -> dict[str, Array]:
    """Return the outputs of a torch module that answers every batch so."""
    declared = [tensor(name, datatype) for name in outputs or ("y",)]
    backend = TorchBackend(
        spec([tensor("x")], declared), lambda x: answer, [Argument("x")], torch.device("cpu")
    )
    return backend.forward({"x": X}, PLAIN)


def refusal(answer: Any, *outputs: str, datatype: str = "FP32") -> str:
    with pytest.raises(BadModelOutput) as caught:
        answers(answer, *outputs, datatype=datatype)
    return caught.value.message


ONE, TWO = torch.ones(2, 2), torch.full((2, 2), 2.0)


@pytest.mark.parametrize(
    ("answer", "outputs", "seen"),
    [
        (ONE, ["y"], [1]),
        ((ONE, TWO), ["a", "b"], [1, 2]),
        ([ONE, TWO], ["a", "b"], [1, 2]),
        ((ONE, (TWO, TWO)), ["y"], [1]),  # what is not declared may be anything
        ({"a": ONE, "b": TWO}, ["b", "a"], [2, 1]),
        (OrderedDict(b=TWO, logits=ONE), ["logits"], [1]),
        (Scores(ONE, TWO), ["boxes", "logits"], [2, 1]),
        (Scores(ONE, TWO), ["boxes"], [2]),
        (Scores(ONE, TWO), ["first", "second"], [1, 2]),
        (torch.max(TWO.reshape(2, 1, 2), 1), ["values"], [2]),
        (torch.max(TWO.reshape(2, 1, 2), 1), ["first"], [2]),
    ],
)
def test_outputs_go_by_name_where_there_are_names_and_else_by_order(
    answer: Any, outputs: list[str], seen: list[float]
) -> None:
    found = answers(answer, *outputs)

    assert [found[name].ravel()[0] for name in outputs] == seen


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "output 'y': the model returned None, the config declares a tensor of FP32"),
        ((None, ONE), "output 'y': the model returned None, the config declares a tensor of FP32"),
        ([[ONE]], "output 'y': the model returned a list, the config declares a tensor of FP32"),
        ({"y": {"z": ONE}}, "output 'y': the model returned a dict, "),
        (3.5, "output 'y': the model returned a float, "),
        ("text", "output 'y': the model returned a str, "),
        ({"z": ONE}, "the model returned ['z'], without ['y']"),
        ({}, "the model returned [], without ['y']"),
        ((), "the model returned 0 tensors, its config declares ['y']"),
        (ONE.to(torch.float8_e4m3fn), "output 'y': datatype float8_e4m3fn, the config declares"),
    ],
)
def test_what_is_no_tensor_is_refused_by_its_name(answer: Any, said: str) -> None:
    assert refusal(answer).startswith(said)


def test_a_named_tuple_that_has_some_of_the_names_must_have_them_all() -> None:
    said = refusal(Scores(ONE, TWO), "boxes", "scores")

    assert said == "the model returned ['logits', 'boxes'], without ['scores']"


MAKINGS = {
    "parameter": lambda: torch.nn.Parameter(TWO),
    "with a gradient": lambda: TWO.clone().requires_grad_() * 1,
    "with the negative bit": lambda: torch.complex(ONE, -TWO).conj().imag,
    "sparse": TWO.to_sparse,
    "in compressed rows": TWO.to_sparse_csr,
    "of oneDNN": TWO.to_mkldnn,
    "quantised": lambda: torch.quantize_per_tensor(TWO, 0.5, 0, torch.quint8),
    "in strides": lambda: torch.full((4, 4), 2.0)[::2, ::2],
    "expanded": lambda: torch.full((1, 1), 2.0).expand(2, 2),
}


@pytest.mark.parametrize("making", MAKINGS)
@pytest.mark.filterwarnings("ignore")  # of torch, for what it calls beta
def test_a_tensor_of_any_making_is_served_by_its_values(making: str) -> None:
    assert answers(MAKINGS[making]())["y"].tolist() == [[2.0, 2.0], [2.0, 2.0]]


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
@pytest.mark.filterwarnings("ignore")
def test_nested_tensors_have_no_shape_and_are_refused(layout: torch.layout) -> None:
    answer = torch.nested.nested_tensor([ONE, TWO], layout=layout)

    assert refusal(answer) == "output 'y': datatype nested tensors, the config declares FP32"


def test_half_precision_with_a_gradient_or_a_negative_bit_is_served() -> None:
    half = torch.full((2, 2), -2.0, dtype=torch.bfloat16)

    for answer in (torch._neg_view(half), (-half).requires_grad_(), (-half).to_sparse()):
        assert answers(answer)["y"].astype(np.float32).tolist() == [[2.0, 2.0], [2.0, 2.0]]


class Texts(torch.nn.Module):
    def forward(self, x: list[str]) -> tuple[list[str], torch.Tensor]:
        return [each + "!" for each in x], torch.ones(len(x), 2)


class Named(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> Scores:
        return Scores(x, -x)


class Count(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> int:
        return x.size(0)


def test_a_script_gives_the_names_of_its_tuple(tmp_path: Path) -> None:
    save_scripted(Named(), tmp_path / "model.pt")
    described = spec([tensor("x")], [tensor("boxes")])

    outputs = load("torchscript", described, tmp_path / "model.pt").forward({"x": X}, PLAIN)

    assert outputs["boxes"].tolist() == (-X).tolist()


def test_a_script_takes_and_gives_lists_of_texts(tmp_path: Path) -> None:
    """As in Triton, which has no other strings for torch."""
    save_scripted(Texts(), tmp_path / "model.pt")
    described = spec([tensor("x", "BYTES", 1)], [tensor("y", "BYTES", 1), tensor("z")])
    backend = load("torchscript", described, tmp_path / "model.pt")

    outputs = backend.forward({"x": np.array([[b"a"], ["schön".encode()]], object)}, PLAIN)

    assert outputs["y"].tolist() == ["a!", "schön!"]


def test_texts_for_an_argument_that_is_a_tensor_are_refused_at_load(tmp_path: Path) -> None:
    save_scripted(Named(), tmp_path / "model.pt")

    with pytest.raises(BadModel, match="input 'x': TYPE_STRING, but forward's argument 'x' is a T"):
        load("torchscript", spec([tensor("x", "BYTES")], [tensor("y")]), tmp_path / "model.pt")


def test_a_script_that_returns_a_number_is_refused_by_its_output(tmp_path: Path) -> None:
    save_scripted(Count(), tmp_path / "model.pt")
    backend = load("torchscript", spec([tensor("x")], [tensor("y")]), tmp_path / "model.pt")

    with pytest.raises(BadModelOutput, match="output 'y': the model returned a int"):
        backend.forward({"x": X}, PLAIN)


MODEL = """
import dataclasses
from typing import NamedTuple

import numpy as np
import scipy.sparse
import torch

class Pair(NamedTuple):
    z: object
    y: object

@dataclasses.dataclass
class Record:
    z: object
    y: object

class Model:
    def forward(self, inputs):
        x = inputs["x"]
        return {returned}
"""


def python(directory: Path, returned: str, datatype: str = "FP32") -> Array:
    file = directory / "model.py"
    file.write_text(MODEL.replace("{returned}", returned))
    backend = load("python", spec([tensor("x")], [tensor("y", datatype)]), file)
    return backend.forward({"x": X}, PLAIN)["y"]


@pytest.mark.parametrize(
    "returned",
    [
        "{'y': x * 2}",
        "{'y': torch.tensor(x * 2, requires_grad=True)}",
        "{'y': [[2.0, 4.0], [6.0, 8.0]]}",
        "{'y': [[2, 4], [6, 8]]}",
        "{'y': scipy.sparse.csr_array(x * 2)}",
        "x * 2",
        "torch.tensor(x * 2)",
        "(x * 2, None)",
        "Pair(None, x * 2)",
        "Record(None, x * 2)",
    ],
)
def test_a_python_model_may_return_arrays_as_it_likes(tmp_path: Path, returned: str) -> None:
    found = python(tmp_path, returned)

    assert (found.tolist(), found.dtype) == ((X * 2).tolist(), np.float32)


@pytest.mark.parametrize(
    ("returned", "datatype", "said"),
    [
        ("None", "FP32", "forward returned a NoneType, not arrays by output name"),
        ("[[1.0, 2.0]]", "FP32", "forward returned a list, not arrays by output name"),
        ("{'z': x}", "FP32", r"the model returned \['z'\], without \['y'\]"),
        ("{'y': [[300, 1]]}", "UINT8", "output 'y': Python integer 300 out of bounds for uint8"),
        ("{'y': [[-1, 1]]}", "UINT64", "output 'y': .* -1"),
        ("{'y': torch.ones(2, 2).to(torch.float8_e5m2)}", "FP32", "output 'y': datatype float8_e"),
    ],
)
def test_a_python_model_s_other_answers_are_refused(
    tmp_path: Path, returned: str, datatype: str, said: str
) -> None:
    with pytest.raises(BadModelOutput, match=said):
        python(tmp_path, returned, datatype)


@pytest.mark.parametrize("returned", ["{'y': x.astype(np.float64)}", "{'y': [[0.5, 1]]}"])
def test_arrays_and_fractions_are_never_cast_to_what_they_are_not(
    tmp_path: Path, returned: str
) -> None:
    assert python(tmp_path, returned, "INT64").dtype == np.float64


def test_rows_of_different_size_are_an_error_that_halves_may_mend(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="output 'y': setting an array element"):
        python(tmp_path, "{'y': [[1.0], [1.0, 2.0]]}")
