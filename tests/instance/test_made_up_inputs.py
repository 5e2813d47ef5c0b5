"""Inputs that Ferry makes up decide nothing: what they do to a model is said, and it is served."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from ferry_processes import running_worker
from onnx import TensorProto, helper
from scripted_models import add_model, save_scripted
from waiting import wait_until
from worker_processes import numbers, seen

from ferry.commands.models import list_models
from shared.registry.repository_index import repository_index
from shared.settings import Settings

MAX_BATCH_SECONDS = 2.0
KNOWN = 7.0
"""The one value on which the models below are asked by clients."""


class Fragile(torch.nn.Module):
    """Takes its process down on all values but 7: it reads far outside."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x == 7.0).all()):
            return x * 2.0
        return torch.ops.inductor._reinterpret_tensor(x, [1], [1], 1 << 40) + x


class Endless(torch.nn.Module):
    """Comes back on 7 only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        work = torch.ones(256, 256)
        while not bool((x == 7.0).all()):
            work = work @ work / 256.0
        return x * 2.0


class Choosy(torch.nn.Module):
    """Raises on all values but 7."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert bool((x == 7.0).all()), "a seven is wanted"
        return x * 2.0


class Forgetful(torch.nn.Module):
    """Doubles, give or take what was traced in training mode."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(x, 0.5, True)


class InPlace(torch.nn.Module):
    """Doubles where its input stands."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(2.0)


class Windowed(torch.nn.Module):
    """Takes rows of at least 400 values."""

    def __init__(self) -> None:
        super().__init__()
        self.window = torch.nn.Conv1d(1, 2, 400)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.window(x.unsqueeze(1)).mean(2)


MADE = (Fragile(), Endless(), Choosy(), Forgetful(), InPlace())


def add_windowed(repository: Path) -> None:
    file = repository / "windowed" / "1" / "model.pt"
    file.parent.mkdir(parents=True)
    (repository / "windowed" / "config.pbtxt").write_text(
        'platform: "pytorch_libtorch" max_batch_size: 4\n'
        'input [ { name: "x" data_type: TYPE_FP32 dims: [-1] } ]\n'
        'output [ { name: "y" data_type: TYPE_FP32 dims: [2] } ]\n'
    )
    save_scripted(Windowed(), file)


def add_string(repository: Path) -> None:
    """Triton's own example `simple_string` in small: strings that are numbers."""
    ends = [
        helper.make_tensor_value_info("x", TensorProto.STRING, ["n", 2]),
        helper.make_tensor_value_info("y", TensorProto.INT32, ["n", 2]),
    ]
    cast = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.INT32)
    graph = helper.make_graph([cast], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (repository / "strings" / "1").mkdir(parents=True)
    onnx.save(model, repository / "strings" / "1" / "model.onnx")


@pytest.fixture(scope="module")
def serving(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    models = tmp_path_factory.mktemp("models")
    for module in MADE:
        add_model(models, module, max_batch_size=4)
    add_windowed(models)
    add_string(models)
    settings = Settings(
        redis_url=redis_url,
        key_prefix="made-up",
        models=str(models),
        max_batch_seconds=MAX_BATCH_SECONDS,
    )
    with running_worker(settings):
        yield settings


def reason(serving: Settings, model: str) -> str:
    with seen(serving, model) as one:
        one.wait_ready()
        index = {entry["name"]: entry for entry in repository_index(one.registry.snapshot())}
    assert index[model]["state"] == "READY"
    return index[model]["reason"]


COLD = {
    "fragile": "ended with exit code -11 when it was warmed up with inputs that were made up",
    "endless": "ended with exit code -9 when it was warmed up with inputs that were made up",
    "choosy": "what is made up to warm it fails: RuntimeError: AssertionError: a seven",
}


@pytest.mark.parametrize("model", COLD)
def test_a_model_that_cannot_stand_made_up_inputs_is_served_cold(
    serving: Settings, model: str
) -> None:
    with seen(serving, model) as one:
        one.wait_ready()
        answer = numbers(one.push(KNOWN).wait()).tolist()

    assert answer == [[14.0, 14.0]]
    found = reason(serving, model)
    assert found.startswith("served cold: ")
    assert COLD[model] in found


def test_a_model_that_draws_lots_is_served_with_a_warning(serving: Settings) -> None:
    assert "as with dropout in training mode" in reason(serving, "forgetful")


@pytest.mark.parametrize("model", ["inplace", "windowed", "strings"])
def test_what_only_wants_other_inputs_is_warmed_without_a_word(
    serving: Settings, model: str
) -> None:
    assert reason(serving, model) == ""


def test_the_command_line_says_what_is_served_cold(
    serving: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    with seen(serving, "choosy") as one:
        wait_until(lambda: one.registry.snapshot().all_ready(), 30, "every model is ready")
    environ = {"REDIS_URL": serving.redis_url, "FERRY_KEY_PREFIX": serving.key_prefix}

    list_models(environ, as_json=False)

    lines: list[Any] = capsys.readouterr().out.splitlines()
    [choosy] = [line for line in lines if line.startswith("choosy")]
    assert "READY" in choosy and "served cold: what is made up" in choosy
