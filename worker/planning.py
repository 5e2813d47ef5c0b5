"""Finds out which versions of a model are to be served, off the supervisor's own thread.

A model's files are read once whole, to tell whether they changed: by their content, which is the
same on every machine, where their times are not.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from shared.deployments import Desired
from shared.errors import BadModel
from shared.names import MODEL_NAME, VERSION
from shared.settings import Settings
from worker.model_repository import (
    ServedModel,
    model_names,
    policy_versions,
    read_model,
    version_numbers,
)  # fmt: skip

CHUNK_BYTES = 1 << 20
Signature = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True)
class Planned:
    """One version that can be loaded, and the digest of all that it is made of."""

    model: ServedModel
    fingerprint: str


@dataclass(frozen=True)
class Plan:
    """What is to be served of one model, as of `generation` of what is desired.

    `failures` are versions that are wanted and cannot be loaded, `reason` says why it is not known
    which ones are wanted. Without `exists` the repository has no such model.
    """

    name: str
    generation: int
    signature: Signature = ()
    versions: dict[str, Planned] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    reason: str = ""
    exists: bool = True


class Planner:
    """Reads the repository; used by one thread at a time."""

    def __init__(self, settings: Settings) -> None:
        """Read `settings.models`."""
        self._repository = Path(settings.models)
        self._settings = settings
        self._digests: dict[tuple[str, int, int, int], bytes] = {}

    def names(self) -> list[str]:
        """Return the models of the repository; raises BadModel when it is not there."""
        return model_names(self._repository)

    def is_wanted(self, name: str, desired: Desired) -> bool:
        """Tell whether a model is to be loaded: in mode `explicit` only those asked for."""
        if self._settings.model_control_mode != "explicit":
            return True
        if desired.loaded is not None:
            return desired.loaded
        at_start = {each.strip() for each in self._settings.load_models.split(",")}
        return bool({name, "*"} & at_start)

    def signature(self, name: str) -> Signature:
        """Return what changes when any file of a model does: path, inode, size and time.

        Directories are in it by their paths alone.
        """
        found = []
        for folder, folders, files in os.walk(self._repository / name):
            folders[:] = [each for each in folders if each != "__pycache__"]
            found.append((folder, 0, 0, 0))
            for file in files:
                path = os.path.join(folder, file)
                try:
                    status = os.stat(path)
                except OSError:
                    continue  # gone meanwhile: the next look sees another signature
                found.append((path, status.st_ino, status.st_size, status.st_mtime_ns))
        return tuple(sorted(found))

    def plan(self, name: str, desired: Desired) -> Plan:
        """Read what is to be served of a model; never raises for what is in the repository."""
        signature = self.signature(name) if MODEL_NAME.fullmatch(name) else ()
        if not MODEL_NAME.fullmatch(name) or not (self._repository / name).is_dir():
            return Plan(name, desired.generation, signature, exists=False)
        if not self.is_wanted(name, desired):
            return Plan(name, desired.generation, signature)
        override = desired.config if self._settings.model_control_mode == "explicit" else None
        try:
            existing = version_numbers(self._repository / name)
            wanted = set(policy_versions(self._repository, name, override)) | desired.pinned
        except BadModel as error:
            return Plan(name, desired.generation, signature, reason=str(error))
        versions, failures = {}, {}
        for version in sorted(wanted, key=int):
            try:
                if version not in existing:
                    raise BadModel(f"failed to load '{name}', it has no version {version}")
                model = read_model(self._repository, name, version, override)
                versions[version] = Planned(model, self._fingerprint(signature, version, override))
            except BadModel as error:
                failures[version] = str(error)
        return Plan(name, desired.generation, signature, versions, failures)

    def _fingerprint(self, signature: Signature, version: str, override: str | None) -> str:
        """Return the digest of a version's files, of those beside the versions, and its config."""
        digest = blake2b(repr(override).encode(), digest_size=16)
        for entry in signature:
            path = Path(entry[0])
            if path.is_dir():
                continue
            inside = path.relative_to(self._repository).parts[1:]
            if VERSION.fullmatch(inside[0]) and len(inside) > 1 and inside[0] != version:
                continue
            if entry not in self._digests:
                self._digests[entry] = _digest(path)
            digest.update(repr(inside).encode() + self._digests[entry])
        return digest.hexdigest()


def _digest(path: Path) -> bytes:
    digest = blake2b(digest_size=16)
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise BadModel(f"{path}: {error}") from error
    return digest.digest()
