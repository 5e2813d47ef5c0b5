"""Finds out which versions of a model are to be served, off the supervisor's own thread.

A model's files are read once whole, to tell whether they changed: by their content, which is the
same on every machine, where their times are not.
"""

from __future__ import annotations

import logging
import os
import stat
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from shared.errors import BadModel
from shared.names import MODEL_NAME, VERSION
from shared.registry.desired_state import Desired
from shared.registry.desired_store import Content
from shared.settings import Settings
from worker.repository.config.parameters import stops_first
from worker.repository.describer import Describer, describing_by
from worker.repository.file_kinds import trusted_backends
from worker.repository.models import (
    ServedModel,
    is_set_aside,
    left_out,
    model_names,
    no_versions,
    policy_versions,
    read_model,
    version_numbers,
)  # fmt: skip
from worker.repository.verified import RECORDS, why_unverified

CHUNK_BYTES = 1 << 20
RECORD_DEPTH = 2
"""Of a record's path: the version, and its own name."""
Entry = tuple[str, int, int, int]
Signature = tuple[Entry, ...]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedVersion:
    """One version that can be loaded, and the digest of all that it is made of."""

    model: ServedModel
    content: Content


@dataclass(frozen=True)
class Plan:
    """The versions of one model to be served, as of `generation` of its desired state.

    `failures` are versions that are wanted and cannot be loaded, those `gone` because their
    directory is not there; `reason` says why it is not known which ones are wanted. Without
    `exists` the repository has no such model.
    """

    name: str
    generation: int
    signature: Signature = ()
    versions: dict[str, PlannedVersion] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()
    reason: str = ""
    exists: bool = True
    note: str = ""

    def in_turn(self, desired: Desired) -> list[PlannedVersion]:
        """Return the versions to be loaded: of those that take turns, what was asked for alone."""
        chosen = self.versions.get(desired.use)
        if chosen is None or not stops_first(chosen.model.spec.parameters):
            return [*self.versions.values()]
        return [each for version, each in self.versions.items() if version in desired.pinned]

    @property
    def steps(self) -> set[str]:
        """Return the models of an ensemble's steps."""
        found = [step for each in self.versions.values() for step in each.model.spec.steps]
        return {step.model for step in found}


class Planner:
    """Reads the repository; used by one thread at a time."""

    def __init__(self, settings: Settings) -> None:
        """Read `settings.models`."""
        self._repository = Path(settings.models)
        self._settings = settings
        self._left_out: dict[str, set[str]] = {}
        self._describer = Describer()
        self._digests: dict[str, dict[Entry, bytes]] = {}

    def rest(self) -> None:
        """End the process that described models, until the next one is to be read."""
        self._describer.close()

    def names(self) -> list[str]:
        """Return the models of the repository; raises BadModel when it is not there."""
        names = model_names(self._repository)
        self._mention("", left_out(self._repository, names))
        return names

    def _mention(self, model: str, left: dict[str, str]) -> None:
        """Log each directory that is left out, of a model or beside them, once while it is."""
        known = self._left_out.get(model, set())
        for name in sorted(left.keys() - known):
            path = self._repository / model / name
            level = logging.INFO if is_set_aside(path) else logging.WARNING
            log.log(level, "%s is left out: %s", path, left[name])
        self._left_out[model] = set(left)

    def is_wanted(self, name: str, desired: Desired) -> bool:
        """Tell whether a model is to be loaded: in mode `explicit` only those asked for."""
        if self._settings.model_control_mode != "explicit":
            return True
        if desired.loaded is not None:
            return desired.loaded
        at_start = {each.strip() for each in self._settings.load_models.split(",")}
        return bool({name, "*"} & at_start)

    def signature(self, name: str) -> Signature:
        """Return path, inode, size and time of all files of a model: one changes when a file does.

        Directories are in it by their paths alone, links by what they lead to.
        """
        found, seen = list[Entry](), set[str]()
        for folder, folders, files in os.walk(self._repository / name, followlinks=True):
            real = os.path.realpath(folder)
            folders[:] = [each for each in folders if each != "__pycache__" and real not in seen]
            found.append((folder, 0, 0, 0))
            for file in [] if real in seen else files:
                path = os.path.join(folder, file)
                try:
                    status = os.stat(path)
                except OSError:
                    continue  # gone meanwhile: the next look sees another signature
                if stat.S_ISREG(status.st_mode):
                    found.append((path, status.st_ino, status.st_size, status.st_mtime_ns))
            seen.add(real)
        return tuple(sorted(found))

    def plan(self, name: str, desired: Desired) -> Plan:
        """Read a model's versions to be served; never raises for the repository's contents."""
        if not MODEL_NAME.fullmatch(name):
            return Plan(name, desired.generation, exists=False)
        try:
            with describing_by(self._describer):
                return self._plan(name, desired, self.signature(name))
        except BadModel as error:
            reason = str(error)
        except Exception as error:  # a border: the repository is other people's
            log.exception("%s cannot be read, what serves goes on", name)
            reason = f"failed to load '{name}', {type(error).__name__}: {error}"
        return Plan(name, desired.generation, self._signature_or_none(name), reason=reason)

    def _signature_or_none(self, name: str) -> Signature:
        try:
            return self.signature(name)
        except OSError:
            return ()

    def _plan(self, name: str, desired: Desired, signature: Signature) -> Plan:
        if not (self._repository / name).is_dir():
            if not self._repository.is_dir():
                raise BadModel(f"{self._repository}: no such model repository")
            return Plan(name, desired.generation, signature, exists=False)
        if not self.is_wanted(name, desired):
            return Plan(name, desired.generation, signature, note=desired.failure)
        override = desired.config if self._settings.model_control_mode == "explicit" else None
        existing = version_numbers(self._repository / name)
        self._mention(name, no_versions(self._repository / name))
        wanted = set(policy_versions(self._repository, name, override)) | desired.pinned
        versions, failures = {}, {}
        for version in sorted(wanted, key=int):
            try:
                if version not in existing:
                    raise BadModel(f"failed to load '{name}', it has no version {version}")
                model = read_model(
                    self._repository, name, version, override,
                    trusted=trusted_backends(self._settings),
                )  # fmt: skip
                self._check_verified(model)
                content = self._content(signature, name, version, override)
                versions[version] = PlannedVersion(model, content)
            except BadModel as error:
                failures[version] = str(error)
        gone = frozenset(wanted - set(existing))
        return Plan(name, desired.generation, signature, versions, failures, gone)

    def _check_verified(self, model: ServedModel) -> None:
        required = self._settings.require_verified
        if required and (why := why_unverified(model.spec, model.file.parent)):
            raise BadModel(f"failed to load '{model.spec.name}', {why}")

    def _content(
        self, signature: Signature, name: str, version: str, override: str | None
    ) -> Content:
        """Digest a version's files, those beside the versions, and the config that counts."""
        digest = blake2b(repr(override).encode(), digest_size=16)
        before = self._digests.get(name, {})
        self._digests[name] = known = {
            entry: before[entry] for entry in signature if entry in before
        }
        for entry in signature:
            path = Path(entry[0])
            inside = path.relative_to(self._repository).parts[1:]
            if entry[1] == 0 or _is_no_content(inside, version):
                continue
            if entry not in known:
                known[entry] = _digest(path)
            digest.update(repr(inside).encode() + known[entry])
        return Content(name, version, digest.hexdigest())


def _is_no_content(inside: tuple[str, ...], version: str) -> bool:
    """Tell whether a file is another version's, or a record of Ferry's about this one."""
    if len(inside) == 1 or VERSION.fullmatch(inside[0]) is None:
        return False
    return inside[0] != version or (len(inside) == RECORD_DEPTH and inside[1] in RECORDS)


def _digest(path: Path) -> bytes:
    digest = blake2b(digest_size=16)
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise BadModel(f"{path}: {error}") from error
    return digest.digest()
