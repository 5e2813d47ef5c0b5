"""The `version_policy` of a `config.pbtxt`: which of a model's version directories are served."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class VersionPolicy:
    """The `count` highest versions (`latest`), `all` of them, or those in `versions` (`specific`).

    Source: ModelVersionPolicy in Triton's model_config.proto; the default is the highest one.
    """

    kind: Literal["latest", "all", "specific"] = "latest"
    count: int = 1
    versions: tuple[str, ...] = ()


def read_version_policy(message: Any) -> VersionPolicy:
    """Return the policy of a ModelConfig; raises ValueError naming field and value.

    `latest {}` is one version: 0 is how the proto writes a number that was left out.
    """
    policy = message.version_policy
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return VersionPolicy("all")
    if choice != "specific":
        return VersionPolicy(count=max(1, policy.latest.num_versions))
    versions = list(policy.specific.versions)
    if not versions:
        raise ValueError("version_policy.specific.versions [] must name at least one version")
    if min(versions) < 1:
        raise ValueError(f"version_policy.specific.versions {versions} must be 1 or more")
    return VersionPolicy("specific", versions=tuple(str(each) for each in sorted(set(versions))))


def wanted_versions(policy: VersionPolicy, existing: list[str]) -> list[str]:
    """Return the versions that `policy` wants of a model that has `existing`, the lowest first.

    Those named by `specific` are returned whether they exist or not: one that does not is a
    failure to tell, not to pass over.
    """
    if policy.kind == "specific":
        return list(policy.versions)
    found = sorted(existing, key=int)
    return found if policy.kind == "all" else found[-policy.count :]
