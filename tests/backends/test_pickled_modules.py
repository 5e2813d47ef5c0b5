"""`torch.save(model)`: served where pickles are allowed, its classes found beside it."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from formats_repository import TENSORS
from loaded import PLAIN, floats, load_repository, own_imports

from shared.errors import BadModel
from worker.repository.check import check_repository
from worker.repository.models import read_model

NET = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2, bias=False)
        self.dropout = nn.Dropout()

    def forward(self, x):
        return self.dropout(self.layer(x))
"""
SAVES = {
    "zip": "torch.save(model, file)",
    "before zip": "torch.save(model, file, _use_new_zipfile_serialization=False)",
    "pickle": "pickle.dump(model, file)",
    "in a checkpoint": 'torch.save({"epoch": 1, "model": model}, file)',
    "parallel": "torch.save(torch.nn.DataParallel(model), file)",
}
SAVING = f"""
import pickle, torch
import mynet, redis
{NET}
for name, module in (("mynet", mynet), ("redis", redis), ("", None)):
    model = module.Net() if module else Net()
    with torch.no_grad():
        model.layer.weight.copy_(2 * torch.eye(2))
    for how, save in {SAVES!r}.items():
        with open(f"{{name}} {{how}}", "wb") as file:
            exec(save)
"""


@pytest.fixture(autouse=True)
def imports() -> Iterator[None]:
    with own_imports():
        yield


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The directory of a model with a config and a version."""
    directory = tmp_path / "repository" / "mine"
    (directory / "1").mkdir(parents=True)
    (directory / "config.pbtxt").write_text(f"max_batch_size: 8\n{TENSORS}")
    return directory


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of files of another process, each called by its class's module and the way."""
    directory = tmp_path_factory.mktemp("saved")
    for name in ("mynet", "redis"):
        (directory / f"{name}.py").write_text(NET)
    (directory / "train.py").write_text(SAVING)
    command = [sys.executable, "-W", "ignore", "train.py"]
    subprocess.run(command, check=True, cwd=directory, env={**os.environ, "PYTHONPATH": ""})
    return directory


def put(model: Path, saved: Path, module: str, how: str = "zip") -> None:
    (model / "1" / "model.pt").write_bytes((saved / f"{module} {how}").read_bytes())


def doubles(model: Path) -> bool:
    backend = load_repository(model.parent, model.name, allow_pickle=True)
    found: Any = backend.forward({"x": floats([1, 2], [3, 4])}, PLAIN)["y"].tolist()
    return bool(found == [[2, 4], [6, 8]])


@pytest.mark.parametrize("how", SAVES)
def test_a_class_of_a_module_beside_the_file_is_found(model: Path, saved: Path, how: str) -> None:
    put(model, saved, "mynet", how)
    (model / "1" / "mynet.py").write_text(NET)

    assert doubles(model)


def test_the_module_may_lie_in_the_model_s_directory(model: Path, saved: Path) -> None:
    put(model, saved, "mynet")
    (model / "mynet.py").write_text(NET)

    assert doubles(model)


def test_a_module_called_as_an_installed_one_is_theirs(model: Path, saved: Path) -> None:
    put(model, saved, "redis")
    (model / "1" / "redis.py").write_text(NET)

    assert doubles(model)


def test_a_class_of_the_script_that_saved_it_is_found_in_any_file(model: Path, saved: Path) -> None:
    put(model, saved, "")
    (model / "1" / "broken.py").write_text("class Net(:\n")
    (model / "1" / "other.py").write_text("raise RuntimeError('this is not imported')\n")
    (model / "1" / "the_network.py").write_text(NET)

    assert doubles(model)


@pytest.mark.parametrize("module", ["mynet", ""])
def test_a_class_that_is_nowhere_is_named_in_a_sentence(
    model: Path, saved: Path, module: str
) -> None:
    put(model, saved, module)

    with pytest.raises(BadModel) as raised:
        load_repository(model.parent, "mine", allow_pickle=True)

    said = str(raised.value)
    assert said.startswith(f"a pickled torch module (class {module or '__main__'}.Net): ")
    assert "Net cannot be imported" in said
    assert "put the .py file that defines it beside model.pt or in the model's directory" in said
    assert "\n" not in said


@pytest.mark.parametrize("config", ['platform: "pytorch_libtorch"\n', 'backend: "pytorch"\n', ""])
@pytest.mark.parametrize("name", ["model.pt", "best.pth", "pytorch_model.bin", "m.ckpt", "m.pkl"])
def test_torch_s_own_classes_need_no_file(model: Path, name: str, config: str) -> None:
    linear = torch.nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        linear.weight.copy_(2 * torch.eye(2))
    torch.save(linear, model / "1" / name)
    (model / "config.pbtxt").write_text(f"{config}max_batch_size: 8\n{TENSORS}")

    assert doubles(model)
    assert read_model(model.parent, "mine").config.backend == "torch_pickle"


@pytest.mark.parametrize("with_config", [True, False])
def test_where_pickles_are_not_allowed_it_says_what_it_is_and_both_ways_out(
    model: Path, with_config: bool
) -> None:
    torch.save(torch.nn.Linear(2, 2), model / "1" / "model.pt")
    if not with_config:
        (model / "config.pbtxt").unlink()

    with pytest.raises(BadModel) as raised:
        read_model(model.parent, "mine", trusted=())
    report = check_repository(model.parent, trusted=())

    said = (
        f"{model}/1/model.pt: a pickled torch module (class torch.nn.modules.linear.Linear): "
        "loading a pickle runs whatever code is in it, so set FERRY_ALLOW_PICKLE=1 for the worker "
        "if you trust every such file of the repository, or export it with torch.export.save or "
        "torch.jit.script"
    )
    assert str(raised.value) == f"failed to load 'mine', {said}"
    assert report.problems == [said]


@pytest.mark.parametrize("dump", [torch.save, lambda value, file: file.write(pickle.dumps(value))])
def test_it_is_not_loaded_where_pickles_are_not_allowed(
    model: Path, dump: Callable[[Any, Any], Any]
) -> None:
    with (model / "1" / "model.pt").open("wb") as file:
        dump(torch.nn.Linear(2, 2), file)

    with pytest.raises(BadModel, match="FERRY_ALLOW_PICKLE=1"):
        load_repository(model.parent, "mine")
