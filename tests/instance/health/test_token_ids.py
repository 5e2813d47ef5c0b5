"""A token id beyond the vocabulary is refused for its request alone, before it meets a device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_backend import FakeBackend, claimed, fake_spec

from shared.datatypes import Array
from shared.errors import BadModel, BadRequest
from shared.messages import InferResult
from shared.model_spec import ModelSpec, TensorSpec
from worker.backends.loading import load_file
from worker.devices import Placement
from worker.instance.batch import answer_batch
from worker.instance.health.self_check import SelfCheck
from worker.instance.health.token_ids import Vocabulary, vocabulary_of
from worker.instance.outputs import fitted_outputs
from worker.repository.model_config import read_config

WORDS, PLACES, KINDS = 50, 16, 2


class Encoder(torch.nn.Module):
    """Looks ids up as they are, kinds as whole numbers, places by a number of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(WORDS, 4)
        self.places = torch.nn.Embedding(PLACES, 4)
        self.kinds = torch.nn.Embedding(KINDS, 4)
        self.rest = torch.nn.Embedding(7, 4)

    def forward(self, ids: torch.Tensor, kinds: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        places = torch.arange(ids.size(1)).unsqueeze(0)
        found = self.words(ids.long()) + self.kinds(kinds) + self.places(places)
        return (found + self.rest(torch.remainder(others, 7))).sum(-1)


def encoder_spec(**parameters: str) -> ModelSpec:
    names = ("ids", "kinds", "others")
    return ModelSpec(
        name="m", version="1", platform="pytorch_libtorch", max_batch_size=8,
        inputs=tuple(
            TensorSpec(name=name, datatype="INT32" if name == "ids" else "INT64", dims=(-1,))
            for name in names
        ),
        outputs=(TensorSpec(name="y", datatype="FP32", dims=(-1,)),),
        parameters=parameters,
    )  # fmt: skip


def ones() -> dict[str, Array]:
    return {
        name: np.ones((2, 8), np.int32 if name == "ids" else np.int64)
        for name in ("ids", "kinds", "others")
    }


def saved(kind: str, directory: Path) -> Path:
    """Save an encoder in one of torch's formats."""
    torch.manual_seed(5)
    module = Encoder().eval()
    example = tuple(map(torch.from_numpy, ones().values()))
    file = directory / "model"
    jit: Any = torch.jit
    if kind == "torch_export":
        batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=PLACES)
        shapes = [{0: batch, 1: length}] * 3
        program = torch.export.export(module, example, dynamic_shapes=shapes)
        torch.export.save(program, file.with_suffix(".pt2"))
        return file.with_suffix(".pt2")
    script = jit.script(module) if kind == "scripted" else jit.trace(module, example)
    script.save(str(file))
    return file


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("kind", ["scripted", "traced", "torch_export"])
def test_the_rows_of_the_embedding_that_takes_an_input_are_found(kind: str, tmp_path: Path) -> None:
    backend_name = kind if kind == "torch_export" else "torchscript"
    spec, file = encoder_spec(), saved(kind, tmp_path)
    backend = load_file(backend_name, spec, file, Placement("cpu"), trusted=())

    with torch.inference_mode():
        found = vocabulary_of(
            spec, lambda x: fitted_outputs(backend.forward(x, frozenset()), spec, 2), ones()
        )

    assert found == Vocabulary({"ids": WORDS, "kinds": KINDS})  # others are changed before


def test_a_tensor_that_is_written_to_holds_the_input_no_more() -> None:
    table = torch.ones(5, 2)

    def run(inputs: Any) -> None:
        ids = torch.from_numpy(inputs["ids"])
        torch.nn.functional.embedding(ids.remainder_(5), table)

    assert vocabulary_of(encoder_spec(), run, {"ids": np.full((1, 3), 4, np.int64)}) is None


@pytest.mark.parametrize(
    ("parameters", "sizes"),
    [
        ({"vocabulary_size": "9"}, {"ids": 9, "kinds": 9, "others": 9}),
        ({"vocabulary_size:ids": "9"}, {"ids": 9}),
        (
            {"vocabulary_size": "9", "vocabulary_size:kinds": "2"},
            {"ids": 9, "kinds": 2, "others": 9},
        ),
        ({}, None),
    ],
)  # fmt: skip
def test_the_config_says_which_inputs_hold_token_ids(
    parameters: dict[str, str], sizes: dict[str, int] | None
) -> None:
    found = vocabulary_of(encoder_spec(**parameters), lambda _: None, {})

    assert (found and found.sizes) == sizes


CONFIG = """
backend: "python" max_batch_size: 8
input [ {{ name: "input_ids" data_type: TYPE_INT64 dims: [-1] }},
        {{ name: "extra" data_type: TYPE_INT64 dims: [1] }},
        {{ name: "text" data_type: TYPE_STRING dims: [1] }} ]
output [ {{ name: "y" data_type: TYPE_FP32 dims: [2] }} ]
parameters {{ key: "{}" value {{ string_value: "{}" }} }}
"""


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("vocabulary_size", "0", "vocabulary_size 0: expected a number from 1"),
        ("vocabulary_size", "many", "vocabulary_size 'many': expected int"),
        ("vocabulary_size:x", "9", "vocabulary_size:x: there is no input 'x'"),
        ("vocabulary_size:text", "9", "input 'text' holds no numbers"),
    ],
)
def test_a_vocabulary_that_cannot_be_is_refused(
    key: str, value: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.py").touch()
    (tmp_path / "config.pbtxt").write_text(CONFIG.format(key, value))

    with pytest.raises(BadModel, match=said):
        read_config(tmp_path / "config.pbtxt", "1")


@pytest.mark.parametrize(
    "wrong", [np.array([[1, 50]]), np.array([[-1, 2]]), np.array([[10**9, 1]], np.uint64)]
)
def test_an_id_out_of_the_vocabulary_names_itself(wrong: Array) -> None:
    vocabulary = Vocabulary({"ids": 50})

    vocabulary.check({"ids": np.array([[0, 49]]), "x": np.array([[99]])})
    vocabulary.check({"x": np.array([[99]])})
    vocabulary.check({"ids": np.empty((1, 0), np.int64)})
    with pytest.raises(BadRequest, match=r"input 'ids': (50|-1|1000000000) is no token id"):
        vocabulary.check({"ids": wrong})
    with pytest.raises(BadRequest, match="nan is no token id"):
        vocabulary.check({"ids": np.array([[1.0, np.nan]])})


def test_it_fails_alone_and_its_neighbours_share_one_pass() -> None:
    backend = FakeBackend()
    batch = [claimed(str(i), np.full((1, 2), value, np.float32)) for i, value in enumerate((1, 50))]
    batch.append(claimed("2", np.full((1, 2), 49, np.float32)))

    health = SelfCheck(vocabulary=Vocabulary({"x": 50}), learns=False)

    encoded = answer_batch(batch, fake_spec(), backend, "i", health=health)

    results = [InferResult.decode(each) for each in encoded.results]
    assert [type(result.error) for result in results] == [type(None), BadRequest, type(None)]
    assert results[1].error is not None
    assert (results[1].error.status, len(backend.passes)) == (400, 1)
    assert [result.timings.batch_size for result in (results[0], results[2])] == [2, 2]
