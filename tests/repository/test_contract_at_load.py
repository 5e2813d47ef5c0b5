"""A model whose answers are not those that its config declares is refused before any client asks.

`ferry models check --load` says the same sentence as the repository index and the log.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from echo_models import tensors
from ferry_processes import running_worker
from scripted_models import write_model
from waiting import wait_until
from worker_processes import seen

from shared.registry.repository_index import repository_index
from shared.settings import Settings
from worker.repository.check import trial_in_a_process
from worker.repository.models import read_model


class Whole(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.long()


class OneRow(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(0, keepdim=True)


class Three(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :3]


class Renamed(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"z": x}


class Flat(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(1)


REFUSED = {
    "whole": (Whole(), "output 'y': datatype INT64, the config declares FP32"),
    "onerow": (
        OneRow(),
        "output 'y': shape [1, 4] does not have one row for each of the 2 rows that went in, "
        "the config declares [-1, 4]",
    ),
    "three": (Three(), "output 'y': shape [1, 3], the config declares [-1, 4]"),
    "renamed": (Renamed(), "the model returned ['z'], without ['y']"),
}
OWN = {
    "doubles": ("inputs['x'].astype('float64')", "output 'y': datatype FP64, the config decl"),
    "records": ("np.array([[{}] * 4] * len(inputs['x']))", "output 'y': Python objects (dict), th"),
}
CODE = "import numpy as np\nclass Model:\n    def forward(self, inputs):\n        {}\n"


def config(dims: str = "[4]") -> str:
    ends = tensors("input", ("x", "FP32", "[4]")), tensors("output", ("y", "FP32", dims))
    return "max_batch_size: 4\n" + "\n".join(ends)


def add_python(repository: Path, name: str, line: str) -> None:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(f'backend: "python" {config()}')
    (repository / name / "1" / "model.py").write_text(CODE.format(line))


@pytest.fixture(scope="module")
def serving(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    models = tmp_path_factory.mktemp("models")
    for name, (module, _) in REFUSED.items():
        write_model(models, name, f'platform: "pytorch_libtorch" {config()}', module)
    for name, (answer, _) in OWN.items():
        add_python(models, name, f"return {{'y': {answer}}}")
    add_python(models, "raises", "raise KeyError('nothing is right')")
    write_model(models, "flat", f'platform: "pytorch_libtorch" {config("[1]")}', Flat())
    settings = Settings(redis_url=redis_url, key_prefix="contract", models=str(models))
    with running_worker(settings, wait_ready=False):
        yield settings


def index(serving: Settings, model: str) -> dict[str, str]:
    with seen(serving, model) as one:
        snapshot = one.registry.snapshot()
    return {entry["name"]: entry for entry in repository_index(snapshot)}.get(model, {})


SAID = {name: said for name, (_, said) in (REFUSED | OWN).items()}


def refusal(serving: Settings, model: str) -> str:
    """Return why a model is not served, once it is said."""
    wait_until(
        lambda: (
            index(serving, model).get("state") == "UNAVAILABLE"
            and "failed to load" in index(serving, model)["reason"]
        ),
        60,
        f"{model} is refused",
    )
    return index(serving, model)["reason"]


@pytest.mark.parametrize("model", SAID)
def test_a_model_that_answers_otherwise_than_declared_is_not_served(
    serving: Settings, model: str
) -> None:
    assert SAID[model] in refusal(serving, model)


def test_one_that_only_raises_is_served_with_a_warning(serving: Settings) -> None:
    wait_until(lambda: index(serving, "raises").get("state") == "READY", 60, "raises is ready")

    assert index(serving, "raises")["reason"].startswith("served cold: ")


def test_a_check_that_loads_the_model_says_the_same(serving: Settings) -> None:
    found = trial_in_a_process(os.environ)(read_model(Path(serving.models), "onerow"))

    assert found.problem
    assert refusal(serving, "onerow").endswith(f": {found.problem}")


def test_numbers_where_rows_of_one_are_declared_are_put_right(serving: Settings) -> None:
    with seen(serving, "flat") as one:
        one.wait_ready()
        [output] = one.push(2.0, (3, 4)).wait().outputs

    assert output.array().tolist() == [[8.0], [8.0], [8.0]]
