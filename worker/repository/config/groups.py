"""The `instance_group`s of a `config.pbtxt`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tritonclient.grpc import model_config_pb2

from worker.repository.config.ensemble import PLATFORM

MAX_COUNT = 256


@dataclass(frozen=True)
class InstanceGroup:
    """A number of processes on one kind of device: `auto`, `gpu` or `cpu`."""

    kind: str = "auto"
    count: int = 1
    gpus: tuple[int, ...] = ()


def read_groups(message: Any) -> tuple[InstanceGroup, ...]:
    """Return the groups, one when there are none; raises ValueError naming field and value."""
    groups = tuple(_group(item) for item in message.instance_group) or (InstanceGroup(),)
    if message.platform == PLATFORM:  # only its steps need a device
        return tuple(replace(group, kind="cpu") for group in groups)
    return groups


def _group(item: Any) -> InstanceGroup:
    kind = model_config_pb2.ModelInstanceGroup.Kind.Name(item.kind).removeprefix("KIND_").lower()
    if kind not in {"auto", "gpu", "cpu"}:
        raise ValueError(
            f"instance_group: kind KIND_{kind.upper()} is not supported: expected KIND_AUTO, "
            "KIND_GPU or KIND_CPU"
        )
    if item.count < 0:
        raise ValueError(f"instance_group: count {item.count} must not be negative")
    if item.count > MAX_COUNT:
        raise ValueError(f"instance_group: count {item.count} must not exceed {MAX_COUNT}")
    if item.gpus and (kind == "cpu" or min(item.gpus) < 0):
        raise ValueError(
            f"instance_group: gpus {list(item.gpus)} must be numbers of GPUs, and not of KIND_CPU"
        )
    return InstanceGroup(kind, max(1, item.count), tuple(item.gpus))
