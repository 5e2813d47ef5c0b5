"""`ferry edge`: a version as a bundle for phones and boards, whole or not at all.

read the version -> write its files -> compare each with the version as it is served
-> manifest, parity report, loaders, labels, tokenizer -> the directory takes its place
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shared.errors import BadModel
from shared.settings import Settings
from worker.optimise.edge.files import EdgeFile, EdgeFiles, Say
from worker.optimise.edge.loaders import loaders
from worker.optimise.edge.ort_files import make_ort
from worker.optimise.edge.tflite_files import make_tflite
from worker.optimise.quiet import quiet
from worker.optimise.subjects import Subject, check_held
from worker.optimise.tuning.task import Task
from worker.optimise.verify import VerifyOrder, compare
from worker.repository.models import ServedModel, read_model
from worker.repository.verified import PASSED, digests

TARGETS = {"ort": make_ort, "tflite": make_tflite}
UNFINISHED_BUNDLE = ".ferry-edge-"
BUNDLE_MANIFEST, PARITY_REPORT = "manifest.json", "parity.json"


@dataclass(frozen=True)
class EdgeOrder:
    """The options of `ferry edge`."""

    name: str
    target: str
    version: str = ""
    platform: str = ""
    output: Path | None = None
    data: Path | None = None
    label: str = ""


@dataclass(frozen=True)
class Bundle:
    """Where the bundle lies, its manifest, its parity report, and notes for people."""

    directory: Path
    manifest: Mapping[str, Any]
    parity: Mapping[str, Any]
    notes: Sequence[str]


def make_bundle(
    order: EdgeOrder, repository: Path, environ: Mapping[str, str], say: Say = print
) -> Bundle:
    """Write the bundle of a version; raises BadModel in one sentence, then nothing was written."""
    if order.label and order.data is None:
        raise BadModel("--label names a column of --data, which was not given")
    check_held(repository, order.name, order.version)
    model = read_model(repository, order.name, order.version or None)
    if model.spec.steps:
        raise BadModel(f"{model.spec.key} is an ensemble: make bundles of the models of its steps")
    place = _place(order, repository, model)
    settings = Settings.from_env(environ)
    with _scratch(place) as scratch:
        task = Task(
            repository, order.name, model.spec.version, settings, scratch / "work", order.data,
            order.label,
        )  # fmt: skip
        _ = task.rows  # a fault of the data is said before anything is made
        reference = task.original(threads=1)
        made = TARGETS[order.target](task, scratch / "bundle", order.platform, environ, say)
        parity = _parity(order, task, reference, made)
        manifest = _completed(order, task, made, parity, scratch / "bundle")
        try:
            os.rename(scratch / "bundle", place)
        except OSError as error:
            raise BadModel(f"--output {place}: not written: {error.strerror}") from error
    return Bundle(place, manifest, parity, made.notes)


def _place(order: EdgeOrder, repository: Path, model: ServedModel) -> Path:
    """Return where the bundle goes: as said, else beside the repository; raises BadModel."""
    name = f"{model.spec.name}-{model.spec.version}-{order.target}"
    place = (order.output or repository.resolve().parent / "edge" / name).absolute()
    if place.resolve().is_relative_to(repository.resolve()):
        raise BadModel(
            f"--output {place} is inside of the model repository, where only models are: name a "
            "directory outside of it"
        )
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise BadModel(f"{place} is there already: remove it, or name another by --output")
    return place


@contextmanager
def _scratch(place: Path) -> Iterator[Path]:
    """Make a directory beside the bundle's place, on its file system, and remove it at the end."""
    missing = [each for each in place.parents if not each.exists()]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=UNFINISHED_BUNDLE, dir=place.parent))
    except OSError as error:
        raise BadModel(f"--output {place}: not written: {error.strerror}") from error
    try:
        for name in ("work", "bundle"):
            (scratch / name).mkdir()
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if not place.exists():
            for each in missing:  # the nearest first, as far as they are empty
                if each.is_dir() and not any(each.iterdir()):
                    each.rmdir()


def _parity(
    order: EdgeOrder, task: Task, reference: Subject, made: EdgeFiles
) -> dict[str, dict[str, Any]]:
    """Compare each file with the version; raises BadModel where one that is needed fails.

    What is not needed, as INT8 besides FP32, is left out of the bundle then, and said.
    """
    asked = VerifyOrder(order.name, task.version, data=order.data, label=order.label)
    records = {}
    for each in made.files:
        with quiet(), each.opened() as candidate:
            wanted = VerifyOrder(**{**vars(asked), "precision": each.precision})
            record = compare(wanted, task.model, reference, candidate)
        records[each.path.name] = record
        if record["verdict"] == PASSED:
            continue
        if each.is_needed:
            raise BadModel(
                f"{each.path.name} answers otherwise than {task.model.spec.key}: "
                f"{'; '.join(record['reasons'])}"
            )
        each.path.unlink()
        made.notes.append(f"{each.path.name} is left out: {'; '.join(record['reasons'])}")
    return records


def _completed(
    order: EdgeOrder, task: Task, made: EdgeFiles, parity: Mapping[str, Any], directory: Path
) -> dict[str, Any]:
    """Write all that goes beside the model's files, the manifest last; return it."""
    (directory / PARITY_REPORT).write_text(json.dumps(parity, indent=2) + "\n", encoding="utf-8")
    kept = [each for each in made.files if each.path.exists()]
    manifest = _manifest(order, task, made, kept)
    manifest |= _labels(task, directory)
    if task.model.asset is not None:
        (directory / "tokenizer.json").write_bytes(task.model.asset)
    sources, notes = loaders(order.target, manifest)
    for name, text in sources.items():
        (directory / name).write_text(text, encoding="utf-8")
    made.notes.extend(notes)
    manifest["notes"] = made.notes
    known = {each.path.name: each for each in kept}
    manifest["files"] = {
        file.name: _described(file, known.get(file.name)) for file in sorted(directory.iterdir())
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    (directory / BUNDLE_MANIFEST).write_text(text, encoding="utf-8")
    return manifest


def _manifest(
    order: EdgeOrder, task: Task, made: EdgeFiles, kept: Sequence[EdgeFile]
) -> dict[str, Any]:
    spec = task.model.spec
    text = None if spec.text is None else spec.text.model_dump(mode="json")
    return {
        "model": spec.name,
        "version": spec.version,
        "target": order.target,
        "target_platform": order.platform or "any",
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "model_files": [each.path.name for each in kept],
        "inputs": made.inputs,
        "outputs": made.outputs,
        "image": None if spec.image is None else spec.image.model_dump(mode="json"),
        "text": text,
        "output_activation": spec.output_activation,
        "versions": made.versions,
        "source": {
            "backend": task.model.config.backend,
            "digests": digests(spec, task.model.file.parent),
        },
    }


def _labels(task: Task, directory: Path) -> dict[str, Any]:
    """Write the names of the classes, where an output has some; return the manifest's entry."""
    labelled = next((each for each in task.model.spec.outputs if each.labels), None)
    if labelled is None:
        return {"labels": None}
    (directory / "labels.txt").write_text("\n".join(labelled.labels) + "\n", encoding="utf-8")
    return {"labels": {"output": labelled.name, "file": "labels.txt"}}


def _described(file: Path, model_file: EdgeFile | None) -> dict[str, Any]:
    content = file.read_bytes()
    found = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    if model_file is None:
        return found
    return found | {
        "what": model_file.what,
        "precision": model_file.precision,
        "operators": model_file.operators,
    }
