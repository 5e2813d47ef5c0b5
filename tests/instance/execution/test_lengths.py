"""Ragged rows padded to a few lengths, all of them warmed: answers stay, or it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stand_ins import torchscript

from shared.datatypes import Array
from shared.errors import BadModel
from shared.model_spec import MaskInput, ModelSpec, TensorSpec
from worker.devices import Placement
from worker.instance.execution.lengths import LengthBackend
from worker.instance.process import WarmBackend, load_backend, warm_backend
from worker.job import InstanceJob
from worker.meter import Meter
from worker.repository.execution import execution_policy
from worker.repository.models import read_model

NO_PIXELS: frozenset[str] = frozenset()
X = TensorSpec(name="x", datatype="INT64", dims=(-1,), ragged=True, pad=9)
MASK = MaskInput(
    tensor=TensorSpec(name="mask", datatype="INT64", dims=(-1,)), of="x", position=1
)  # fmt: skip
CONFIG = """
max_batch_size: 4
input [ {{ name: "x" data_type: TYPE_FP32 dims: [-1] allow_ragged_batch: true }},
        {{ name: "mask" data_type: TYPE_FP32 dims: [-1] allow_ragged_batch: true }} ]
output [ {{ name: "y" data_type: TYPE_FP32 dims: {out} }} ]
parameters {{ key: "length_buckets" value {{ string_value: "{lengths}" }} }}
"""


class Masked(torch.nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (x * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)


class Blind(torch.nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (x * mask).mean(1, keepdim=True)


class EachToken(torch.nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return x * mask * 2.0


class Short(torch.nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        table = torch.ones(16)
        return (x * mask * table[: x.shape[1]]).sum(1, keepdim=True)


def job(models: Path, module: torch.nn.Module, *, lengths: str, out: str = "[1]") -> InstanceJob:
    torchscript(models, "m", module.eval(), CONFIG.format(lengths=lengths, out=out))
    model = read_model(models, "m")
    return InstanceJob(
        "i", model.spec, model.config.backend, model.file, Placement("cpu", 1), "redis://", "x",
        1.0, "INFO",
    )  # fmt: skip


def warmed(*arguments: Any, **options: Any) -> WarmBackend:
    return warm_backend(job(*arguments, **options), Meter())


def rows(count: int, length: int) -> dict[str, Array]:
    x = np.random.default_rng(length).normal(size=(count, length)).astype(np.float32)
    return {"x": x, "mask": np.ones_like(x)}


class Seeing:
    def __init__(self, *extra: int) -> None:
        self.seen: list[dict[str, Array]] = []

    def forward(self, inputs: Any, pixels: frozenset[str]) -> dict[str, Array]:
        self.seen.append(dict(inputs))
        return {"y": inputs["x"] * 2, "first": inputs["x"][:, :1]}


def seeing(*, left: bool = False) -> tuple[Seeing, LengthBackend]:
    own = Seeing()
    spec = ModelSpec(
        name="m", version="1", platform="p", max_batch_size=8,
        inputs=(X.model_copy(update={"pad_left": left}),),
        outputs=(
            TensorSpec(name="y", datatype="INT64", dims=(-1,)),
            TensorSpec(name="first", datatype="INT64", dims=(1,)),
        ),
        masks=(MASK,),
    )  # fmt: skip
    backend = LengthBackend(own, spec)
    backend.lengths = (4, 8)
    return own, backend


@pytest.mark.parametrize("left", [False, True])
def test_rows_are_padded_as_their_input_says_masked_and_cut_again(left: bool) -> None:
    own, backend = seeing(left=left)
    x = np.array([[1, 2, 3], [4, 5, 6]])

    found = backend.forward({"x": x}, NO_PIXELS)

    width = ((0, 0), (1, 0) if left else (0, 1))
    np.testing.assert_array_equal(own.seen[0]["x"], np.pad(x, width, constant_values=9))
    np.testing.assert_array_equal(own.seen[0]["mask"], np.pad(np.ones_like(x), width))
    np.testing.assert_array_equal(found["y"], 2 * x)
    assert found["first"].shape == (2, 1)


def test_a_mask_that_is_there_is_made_longer_with_its_input() -> None:
    own, backend = seeing()

    backend.forward({"x": np.ones((1, 5), int), "mask": np.array([[1, 1, 0, 0, 0]])}, NO_PIXELS)

    assert own.seen[0]["mask"].tolist() == [[1, 1, 0, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize(("length", "seen"), [(1, 4), (4, 4), (5, 8), (8, 8), (9, 9), (0, 4)])
def test_the_model_sees_these_lengths_and_longer_ones_alone(length: int, seen: int) -> None:
    own, backend = seeing()

    found = backend.forward({"x": np.ones((2, length), int)}, NO_PIXELS)

    assert own.seen[0]["x"].shape == (2, seen) and found["y"].shape == (2, length)


@pytest.mark.parametrize(("module", "out"), [(Masked(), "[1]"), (EachToken(), "[-1]")])
def test_a_model_that_leaves_padding_out_is_served(
    tmp_path: Path, module: torch.nn.Module, out: str
) -> None:
    plain = load_backend(job(tmp_path / "plain", module, lengths="100", out=out))
    plain = plain._backend  # type: ignore[attr-defined]
    warm = warmed(tmp_path / "other", module, lengths="8,24", out=out)

    for count, length in ((1, 3), (4, 8), (3, 9), (2, 30)):
        asked = rows(count, length)
        expected, found = (
            each.forward(dict(asked), NO_PIXELS)["y"] for each in (plain, warm.backend)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (Blind(), r"length_buckets 8,24: output 'y' is off by \S+ of its largest number"),
        (Short(), "length_buckets 8,24: a batch of 1 fails: "),
    ],
)
def test_what_padding_changes_is_refused(
    tmp_path: Path, module: torch.nn.Module, said: str
) -> None:
    with pytest.raises(BadModel, match=said):
        warmed(tmp_path, module, lengths="8,24")


def test_every_length_is_warmed_in_every_batch_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[tuple[int, ...]] = set()
    forward = LengthBackend.forward

    def noted(self: LengthBackend, inputs: Any, pixels: frozenset[str]) -> dict[str, Array]:
        if self.lengths:
            length = next(each for each in self.lengths if each >= inputs["x"].shape[1])
            seen.add((len(inputs["x"]), length))
        return forward(self, inputs, pixels)

    monkeypatch.setattr(LengthBackend, "forward", noted)
    warmed(tmp_path, Masked(), lengths="8,24")

    assert seen >= {(count, length) for count in (1, 2, 4) for length in (8, 24)}


class Looking(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(50, 2)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (self.table(x).sum(2) * mask).sum(1, keepdim=True) / 7.0


def test_the_vocabulary_is_known_of_rows_that_are_padded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled = 'parameters {{ key: "batch_buckets" value {{ string_value: "4" }} }}'
    of_ids = CONFIG.replace("TYPE_FP32 dims: [-1]", "TYPE_INT64 dims: [-1]") + filled
    monkeypatch.setitem(globals(), "CONFIG", of_ids)

    warm = warmed(tmp_path, Looking(), lengths="8,24")

    assert warm.health.vocabulary is not None
    assert warm.health.vocabulary.sizes == {"x": 50}


@pytest.mark.parametrize(
    ("backend", "text", "inputs", "complaint"),
    [
        ("pytorch", "0,4", [X], "length_buckets '0,4': expected up to 16 lengths from 1 on"),
        ("pytorch", "many", [X], "length_buckets 'many': expected ints"),
        ("pytorch", "4", [X.model_copy(update={"ragged": False})], "with allow_ragged_batch"),
        ("pytorch", "4", [X.model_copy(update={"dims": (-1, -1)})], "in each one dimension of -1"),
        ("python", "4", [X], "no batches to pad, it sees each request"),
    ],
)
def test_lengths_that_nobody_can_follow_are_refused_when_the_config_is_read(
    backend: str, text: str, inputs: list[TensorSpec], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        execution_policy(backend, {"length_buckets": text}, 8, inputs)
