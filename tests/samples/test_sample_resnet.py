"""The samples `resnet18` and `resnet50` are torchvision's networks, alike in all three forms."""

import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file

from samples.resnet import load, make, model_directory
from samples.resnet.architecture import ResNet

# Names and shapes as in torchvision's resnet18 and resnet50 checkpoints, written by hand.
EXPECTED_SHAPES = {
    18: {
        "conv1.weight": [64, 3, 7, 7],
        "bn1.weight": [64],
        "bn1.num_batches_tracked": [],
        "layer1.0.conv1.weight": [64, 64, 3, 3],
        "layer1.1.bn2.running_mean": [64],
        "layer2.0.conv1.weight": [128, 64, 3, 3],
        "layer2.0.downsample.0.weight": [128, 64, 1, 1],
        "layer2.0.downsample.1.running_var": [128],
        "layer4.1.conv2.weight": [512, 512, 3, 3],
        "fc.weight": [1000, 512],
        "fc.bias": [1000],
    },
    50: {
        "conv1.weight": [64, 3, 7, 7],
        "layer1.0.conv1.weight": [64, 64, 1, 1],
        "layer1.0.conv3.weight": [256, 64, 1, 1],
        "layer1.0.downsample.0.weight": [256, 64, 1, 1],
        "layer1.0.downsample.1.bias": [256],
        "layer2.3.bn3.weight": [512],
        "layer3.0.conv2.weight": [256, 256, 3, 3],
        "layer3.5.conv1.weight": [256, 1024, 1, 1],
        "layer4.2.conv3.weight": [2048, 512, 1, 1],
        "fc.weight": [1000, 2048],
        "fc.bias": [1000],
    },
}


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return load(18)


def noise(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize(
    ("depth", "entry_count", "parameter_count"), [(18, 122, 11_689_512), (50, 320, 25_557_032)]
)
def test_names_and_shapes_are_torchvisions(
    depth: int, entry_count: int, parameter_count: int
) -> None:
    with torch.device("meta"):
        resnet = ResNet(depth)

    shapes = {name: list(tensor.shape) for name, tensor in resnet.state_dict().items()}
    assert len(shapes) == entry_count
    assert sum(parameter.numel() for parameter in resnet.parameters()) == parameter_count
    assert EXPECTED_SHAPES[depth].items() <= shapes.items()


def test_resnet18_projects_only_where_a_stage_starts() -> None:
    with torch.device("meta"):
        names = ResNet(18).state_dict()

    projected = sorted({name.split(".downsample")[0] for name in names if "downsample" in name})
    assert projected == ["layer2.0", "layer3.0", "layer4.0"]


def test_the_bottleneck_strides_in_its_3x3_convolution() -> None:
    with torch.device("meta"):
        block = ResNet(50).layer2[0]

    strides = [block.conv1.stride, block.conv2.stride, block.conv3.stride]
    assert strides == [(1, 1), (2, 2), (1, 1)]


def test_an_unknown_depth_is_refused() -> None:
    with pytest.raises(ValueError, match=r"depth 34 is unknown, expected one of \[18, 50\]"):
        load(34)


@pytest.mark.parametrize("depth", [18, 50])
def test_random_weights_give_sane_logits_that_tell_pictures_apart(depth: int) -> None:
    with torch.no_grad():
        logits = load(depth)(noise(2))

    assert 0.01 < logits.abs().max() < 10
    assert (logits[0] - logits[1]).abs().max() > 1e-3


@pytest.mark.parametrize("batch_size", [1, 3])
def test_torch_torchscript_and_onnx_agree(
    sample_models: Path, network: torch.nn.Module, batch_size: int
) -> None:
    version = sample_models / "resnet18" / "1"
    pictures = noise(batch_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torchscript = torch.jit.load(version / "model.pt")
    session = onnxruntime.InferenceSession(
        version / "model.onnx", providers=["CPUExecutionProvider"]
    )

    with torch.no_grad():
        expected, traced = network(pictures), torchscript(pictures)
    (onnx_logits,) = session.run(["output"], {"input": pictures.numpy()})

    assert expected.shape == (batch_size, 1000)
    np.testing.assert_allclose(traced.numpy(), expected.numpy(), rtol=0, atol=1e-4)
    np.testing.assert_allclose(onnx_logits, expected.numpy(), rtol=0, atol=1e-4)


def test_the_directory_is_whole_and_the_onnx_model_one_file(sample_models: Path) -> None:
    directory = sample_models / "resnet18"

    assert sorted(path.name for path in (directory / "1").iterdir()) == ["model.onnx", "model.pt"]
    labels = (directory / "labels.txt").read_text().splitlines()
    assert (len(labels), labels[0], labels[-1]) == (1000, "class 0", "class 999")
    assert 'name: "resnet18"\n' in (directory / "config.pbtxt").read_text()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_weights_file_is_loaded(tmp_path: Path, network: torch.nn.Module, suffix: str) -> None:
    state = network.state_dict()
    state["fc.bias"] = torch.arange(1000.0)
    path = tmp_path / f"weights{suffix}"
    _save(state, path)

    loaded = load(18, path)

    assert not loaded.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())


def test_a_weights_file_without_batch_counters_is_loaded(
    tmp_path: Path, network: torch.nn.Module
) -> None:
    state = network.state_dict()
    old = {name: tensor for name, tensor in state.items() if "num_batches_tracked" not in name}
    path = tmp_path / "weights.safetensors"
    _save(old, path)

    loaded = load(18, path)

    assert torch.equal(loaded.state_dict()["conv1.weight"], state["conv1.weight"])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_names_and_shapes_that_do_not_fit_are_reported(
    tmp_path: Path, network: torch.nn.Module, suffix: str
) -> None:
    state = network.state_dict()
    state["head.weight"] = state.pop("fc.weight")
    state["fc.bias"] = torch.zeros(10)
    path = tmp_path / f"weights{suffix}"
    _save(state, path)

    with pytest.raises(ValueError) as caught:
        load(18, path)

    assert str(caught.value) == (
        f"{path}: not a ResNet-18; missing: fc.weight; unexpected: head.weight; "
        "wrong shape: fc.bias [10] for [1000]"
    )


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_an_unreadable_weights_file_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"this is not a weights file")

    with pytest.raises(ValueError, match="not a readable weights file"):
        load(18, path)


def test_a_file_that_holds_no_state_dict_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"epoch": 3}, path)

    with pytest.raises(ValueError, match="expected a state dict"):
        load(18, path)


def test_labels_and_depth_reach_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = tmp_path / "names.txt"
    labels.write_text("".join(f"animal {index}\n" for index in range(1000)))
    monkeypatch.setattr(model_directory, "save_onnx", lambda *_: None)
    monkeypatch.setattr(model_directory, "save_torchscript", lambda *_: None)

    make(tmp_path / "resnet50", depth=50, labels=labels)

    assert (tmp_path / "resnet50" / "labels.txt").read_text() == labels.read_text()
    assert 'name: "resnet50"\n' in (tmp_path / "resnet50" / "config.pbtxt").read_text()


def test_too_few_labels_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    labels = tmp_path / "names.txt"
    labels.write_text("cat\ndog\n")

    with pytest.raises(ValueError, match="2 labels, expected 1000"):
        make(tmp_path / "resnet18", labels=labels)

    assert not (tmp_path / "resnet18").exists()


def _save(state: dict[str, torch.Tensor], path: Path) -> None:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
