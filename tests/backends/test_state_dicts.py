"""Weights and the code that makes their module: found, filled, and wrong keys named."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loaded import PLAIN, floats, load_repository, own_imports
from safetensors.torch import save_file, save_model

from shared.errors import BadModel
from worker.backends.base import Backend
from worker.repository.models import read_model

ARCHITECTURE = '''
from torch import nn


def network(width=3, dropout=0.0):
    """Two layers."""
    return nn.Sequential(nn.Linear(2, width), nn.Dropout(dropout), nn.Linear(width, 2))


class Difference(nn.Module):
    """Has named arguments, of which the last may be left out."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Linear(1, 1, bias=False)

    def forward(self, first, second=0.5):
        return (first - second) * self.scale.weight


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(2, 2, bias=False)
        self.b = nn.Linear(2, 2, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x))


NOT_CALLABLE = 3


def not_a_module():
    return "module"
'''
INPUT = 'input [ { name: "x" data_type: TYPE_FP32 dims: [2] } ]\n'
OUTPUT = 'output [ { name: "y" data_type: TYPE_FP32 dims: [2] } ]\n'
X = floats([1, 2], [-3, 4])


@pytest.fixture(autouse=True)
def imports() -> Iterator[None]:
    with own_imports():
        yield


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "architectures.py").write_text(ARCHITECTURE)
    return tmp_path


def configured(repository: Path, inputs: str = INPUT, **parameters: str) -> None:
    text = "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
        for key, value in parameters.items()
    )
    (repository / "m" / "config.pbtxt").write_text(
        f'backend: "pytorch" max_batch_size: 8\n{inputs}{OUTPUT}{text}'
    )


def network(width: int = 3) -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(
        torch.nn.Linear(2, width), torch.nn.Dropout(0.0), torch.nn.Linear(width, 2)
    )


def answer(backend: Backend) -> list[list[float]]:
    rows: list[list[float]] = backend.forward({"x": X}, PLAIN)["y"].tolist()
    return rows


@pytest.mark.parametrize("filename", ["weights.pt", "weights.safetensors", "model.safetensors"])
def test_weights_fill_the_module_that_the_config_names(repository: Path, filename: str) -> None:
    weights, file = network().state_dict(), repository / "m" / "1" / filename
    save_file(weights, file) if file.suffix == ".safetensors" else torch.save(weights, file)
    configured(repository, architecture="architectures:network")

    found = answer(load_repository(repository, "m"))

    expected = network()(torch.from_numpy(X)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_keyword_arguments_reach_the_architecture_and_it_is_in_eval_mode(repository: Path) -> None:
    torch.save(network(5).state_dict(), repository / "m" / "1" / "weights.pt")
    arguments = '{\\"width\\": 5, \\"dropout\\": 0.9}'
    configured(repository, architecture="architectures:network", architecture_arguments=arguments)

    found = answer(load_repository(repository, "m"))

    np.testing.assert_allclose(found, network(5)(torch.from_numpy(X)).detach(), rtol=1e-6)


def test_the_code_may_lie_in_the_model_s_directory(repository: Path) -> None:
    (repository / "m" / "1" / "architectures.py").rename(repository / "m" / "architectures.py")
    torch.save(network().state_dict(), repository / "m" / "1" / "weights.pt")
    configured(repository, architecture="architectures:network")

    assert len(answer(load_repository(repository, "m"))) == 2


def test_inputs_go_by_argument_name_and_an_optional_one_may_be_absent(repository: Path) -> None:
    save_file({"scale.weight": torch.tensor([[2.0]])}, repository / "m" / "1" / "model.safetensors")
    two = INPUT.replace('"x"', '"second"').replace("dims", "optional: true dims")
    configured(
        repository, two + INPUT.replace('"x"', '"first"'), architecture="architectures:Difference"
    )
    backend = load_repository(repository, "m")

    both = backend.forward({"second": floats([1, 1]), "first": floats([4, 4])}, PLAIN)
    one = backend.forward({"first": floats([4, 4])}, PLAIN)

    assert (both["y"].tolist(), one["y"].tolist()) == ([[6.0, 6.0]], [[7.0, 7.0]])


def test_missing_unexpected_and_misshapen_keys_are_named(repository: Path) -> None:
    weights = network().state_dict()
    weights["head.weight"] = weights.pop("2.weight")
    weights["0.bias"] = torch.zeros(7)
    torch.save(weights, repository / "m" / "1" / "weights.pt")
    configured(repository, architecture="architectures:network")

    with pytest.raises(
        BadModel,
        match=r"missing keys '2.weight'; unexpected keys 'head.weight'; "
        r"'0.bias' has shape \[7\], the module's \[3\]",
    ):
        load_repository(repository, "m")


def test_many_wrong_keys_are_counted(repository: Path) -> None:
    many = {f"layer{i:02d}": torch.zeros(1) for i in range(20)}
    torch.save(network().state_dict() | many, repository / "m" / "1" / "weights.pt")
    configured(repository, architecture="architectures:network")

    with pytest.raises(BadModel, match="'layer07' and 12 more"):
        load_repository(repository, "m")


def test_a_tied_weight_is_saved_once_and_is_not_missing(repository: Path) -> None:
    sys.path.insert(0, str(repository / "m" / "1"))
    from architectures import Tied  # type: ignore[import-not-found]  # noqa: PLC0415

    module = Tied()
    save_model(module, str(repository / "m" / "1" / "model.safetensors"))
    configured(repository, architecture="architectures:Tied")

    found = answer(load_repository(repository, "m"))

    np.testing.assert_allclose(found, module(torch.from_numpy(X)).detach(), rtol=1e-6)


def test_a_whole_pickled_module_is_refused_and_not_loaded(repository: Path) -> None:
    torch.save(network(), repository / "m" / "1" / "weights.pt")
    configured(repository, architecture="architectures:network")

    with pytest.raises(BadModel, match=r"a pickled torch module .* set FERRY_ALLOW_PICKLE=1"):
        load_repository(repository, "m")


def test_a_file_with_something_else_is_refused(repository: Path) -> None:
    torch.save([torch.zeros(1)], repository / "m" / "1" / "weights.pt")
    configured(repository, architecture="architectures:network")

    with pytest.raises(BadModel, match=r"/1/weights.pt: a list saved with torch.save, neither"):
        load_repository(repository, "m")


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net"])
def test_a_checkpoint_s_weights_are_found_in_it(repository: Path, key: str) -> None:
    module = network()
    optimizer = torch.optim.SGD(module.parameters(), momentum=0.9).state_dict()
    checkpoint = {"epoch": 3, "optimizer": optimizer, key: module.state_dict()}
    torch.save(checkpoint, repository / "m" / "1" / "last.ckpt")
    configured(repository, architecture="architectures:network")

    found = answer(load_repository(repository, "m"))

    np.testing.assert_allclose(found, module(torch.from_numpy(X)).detach(), rtol=1e-6)


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "model._orig_mod."])
def test_a_wrapper_s_name_in_front_of_all_weights_does_no_harm(
    repository: Path, prefix: str
) -> None:
    module = network()
    weights = {prefix + name: value for name, value in module.state_dict().items()}
    torch.save(weights, repository / "m" / "1" / "model.pth")
    configured(repository, architecture="architectures:network")

    found = answer(load_repository(repository, "m"))

    np.testing.assert_allclose(found, module(torch.from_numpy(X)).detach(), rtol=1e-6)


def test_a_checkpoint_with_other_objects_is_not_unpickled(repository: Path) -> None:
    checkpoint = {"state_dict": network().state_dict(), "hyper_parameters": Path("x")}
    torch.save(checkpoint, repository / "m" / "1" / "last.ckpt")
    configured(repository, architecture="architectures:network")

    with pytest.raises(BadModel, match=r"a checkpoint .* save its entry 'state_dict' alone"):
        load_repository(repository, "m")


def test_without_an_architecture_it_says_how_to_name_one(repository: Path) -> None:
    torch.save(network().state_dict(), repository / "m" / "1" / "model.pt")
    configured(repository)

    with pytest.raises(BadModel, match=r'/model.pt: a state dict, weights only: .* "architecture"'):
        read_model(repository, "m")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "name the code that makes its module"),
        ({"architecture": "architectures"}, "expected package.module:callable"),
        ({"architecture": "nowhere_to_be_found:net"}, "No module named 'nowhere_to_be_found'"),
        ({"architecture": "architectures:net"}, "architectures has no 'net'"),
        ({"architecture": "architectures:NOT_CALLABLE"}, "is no callable"),
        ({"architecture": "architectures:not_a_module"}, "made a str, no torch module"),
        (
            {"architecture": "architectures:network", "architecture_arguments": "width=5"},
            "architecture_arguments 'width=5'",
        ),
        (
            {"architecture": "architectures:network", "architecture_arguments": "[5]"},
            "expected a JSON object",
        ),
    ],
)
def test_what_is_wrong_with_the_parameters_is_said(
    repository: Path, parameters: dict[str, str], message: str
) -> None:
    torch.save(network().state_dict(), repository / "m" / "1" / "weights.pt")
    configured(repository, **parameters)

    with pytest.raises(BadModel, match=message):
        load_repository(repository, "m")


MARK = "a_file_that_nobody_makes"


@pytest.mark.parametrize(
    ("path", "arguments"),
    [
        ("os:system", {"command": f"touch {MARK}"}),
        ("posix:system", {"command": f"touch {MARK}"}),
        ("subprocess:Popen", {"args": ["touch", MARK]}),
        ("subprocess:run", {"args": ["touch", MARK]}),
        ("pathlib:Path.touch", {"self": MARK}),
        ("os:mkdir", {"path": MARK}),
        ("builtins:open", {"file": MARK, "mode": "w"}),
        ("torch:save", {"obj": 1, "f": MARK}),
        ("torch.hub:load", {"repo_or_dir": ".", "model": "network", "source": "local"}),
        ("architectures:os.mkdir", {"path": MARK}),
        ("architectures:make", {"path": MARK}),
        ("architectures:made", {}),
    ],
)
def test_what_makes_no_module_is_refused_before_it_is_called(
    repository: Path, monkeypatch: pytest.MonkeyPatch, path: str, arguments: dict[str, Any]
) -> None:
    more = "import os\nfrom functools import partial\nmake = os.mkdir\n"
    more += f"made = partial(make, {MARK!r})\n"
    with (repository / "m" / "1" / "architectures.py").open("a") as file:
        file.write(more)
    (repository / "hubconf.py").write_text(f"open({MARK!r}, 'w')\n")
    monkeypatch.chdir(repository)
    torch.save(network().state_dict(), repository / "m" / "1" / "weights.pt")
    escaped = json.dumps(arguments).replace('"', '\\"')
    configured(repository, architecture=path, architecture_arguments=escaped)

    with pytest.raises(BadModel, match=f"'{path}' is not called: expected a module class"):
        load_repository(repository, "m")
    assert not Path(MARK).exists()


@pytest.mark.parametrize(
    "path", ["torch.nn:Bilinear", "architectures:Tied", "architectures:narrow", "declared_here:net"]
)
def test_module_classes_of_libraries_and_code_beside_the_model_are_called(
    repository: Path, path: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with (repository / "m" / "1" / "architectures.py").open("a") as file:
        file.write("from functools import partial\nnarrow = partial(network, width=1)\n")
    installed = tmp_path_factory.mktemp("installed")
    (installed / "declared_here.py").write_text(
        "from torch import nn\ndef net() -> nn.Linear:\n    return nn.Linear(2, 2)\n"
    )
    sys.path.insert(0, str(installed))  # `imports` takes it out again
    torch.save({"other": torch.zeros(1)}, repository / "m" / "1" / "weights.pt")
    arguments = {"in1_features": 1, "in2_features": 1, "out_features": 1}
    given = json.dumps(arguments if path.startswith("torch") else {}).replace('"', '\\"')
    configured(repository, architecture=path, architecture_arguments=given)

    with pytest.raises(BadModel, match="the weights do not fit"):
        load_repository(repository, "m")
