"""Fill a ResNet: from a file with torchvision's names, or with seeded random weights."""

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from samples.resnet.architecture import BasicBlock, Bottleneck, ResNet

SEED = 18
# The weight of the last norm in each random block. At 1 the untrained blocks double the variance
# each, and ResNet-50's logits for noise reach 90; at 0.5 they stay below 2 (2026-11-21).
RANDOM_BRANCH_WEIGHT = 0.5
# What the two readers raise for damaged files; torch's unpickler checks little before it acts.
DAMAGED_FILE_ERRORS = (
    SafetensorError,
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


def load(depth: int, weights: Path | None = None) -> nn.Module:
    """Return ResNet-`depth` (18 or 50) in eval mode.

    `weights` is a state dict with torchvision's names: a `.safetensors` file, or anything
    `torch.load(weights_only=True)` reads. Without it the weights are random, the same every time.
    Raises ValueError for another depth, an unreadable file, and a file whose names or shapes do
    not fit, naming each of them; FileNotFoundError when there is no such file.
    """
    if weights is None:
        return _random(depth).eval()
    state = _read(weights)
    network = ResNet(depth)
    _check_fit(network, state, f"{weights}: not a ResNet-{depth}")
    network.load_state_dict(state)
    return network.eval()


def _random(depth: int) -> ResNet:
    """Return the network with Kaiming weights and unit norms; global seeds stay put."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = ResNet(depth)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock):
                nn.init.constant_(module.bn2.weight, RANDOM_BRANCH_WEIGHT)
            elif isinstance(module, Bottleneck):
                nn.init.constant_(module.bn3.weight, RANDOM_BRANCH_WEIGHT)
    return network


def _read(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a weights file by name; ValueError when it holds anything else."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGED_FILE_ERRORS as error:
        raise ValueError(f"{path}: not a readable weights file: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ValueError(f"{path}: expected a state dict, a mapping of names to tensors")
    return state


def _check_fit(network: nn.Module, state: dict[str, torch.Tensor], problem: str) -> None:
    """Raise ValueError naming every missing, unexpected and misshapen entry of `state`."""
    expected = network.state_dict()
    # subtle: files from before torch 0.4.1 lack these counters, and load_state_dict fills them in.
    missing = [n for n in expected if n not in state and not n.endswith(".num_batches_tracked")]
    unexpected = [name for name in state if name not in expected]
    misshapen = [
        f"{name} {list(state[name].shape)} for {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    found = {"missing": missing, "unexpected": unexpected, "wrong shape": misshapen}
    faults = [f"{fault}: {', '.join(names)}" for fault, names in found.items() if names]
    if faults:
        raise ValueError(f"{problem}; " + "; ".join(faults))
