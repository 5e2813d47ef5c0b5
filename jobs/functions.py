"""The fixed table of what jobs do: the functions that the commands of the same names call.

They read and write inside of the operator's directories, and import what FERRY_JOB_MODULES lists.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import Redis

from jobs.bulk.bulk import Bulk, finished
from jobs.bulk.bulk import predict as predict_all
from jobs.reporter import Reporter
from shared.errors import BadModel, BadRequest
from shared.jobs import places
from shared.jobs.orders import EdgeJob, ExportJob, OptimiseJob, PredictJob, VerifyJob
from shared.settings import Settings

DONE_FILE = "done.json"


@dataclass(frozen=True)
class Run:
    """One job that is begun: its id, the ending of its upload, and what it works with."""

    job_id: str
    upload: str
    client: Redis
    settings: Settings
    environ: Mapping[str, str]
    reporter: Reporter

    @property
    def repository(self) -> Path:
        """Return the model repository."""
        return Path(self.settings.models)

    def folder(self) -> Path:
        """Return the job's own directory, which is there."""
        folder = places.job_folder(self.settings, self.job_id)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def path(self, field: str, name: str) -> Path | None:
        """Return a file that a field names, None for none; raises BadRequest."""
        return places.input_file(self.settings, field, name) if name else None

    def data(self, name: str) -> Path | None:
        """Return the rows that the field `data` names, None for none; raises BadRequest."""
        return places.data_files(self.settings, "data", name) if name else None


def predict(order: PredictJob, run: Run) -> dict[str, Any]:
    """Ask a model for every row of a file."""
    folder, output = run.folder(), places.answers_file(run.settings, run.job_id, order)
    if run.upload:
        source = folder / f"{places.UPLOAD}{run.upload}"
    else:
        source = places.input_file(run.settings, "input", order.input)
    record = folder / DONE_FILE
    done = finished(record, output)
    if done is None:
        output.parent.mkdir(parents=True, exist_ok=True)
        within = None if run.upload else Path(run.settings.job_inputs)
        bulk = Bulk(
            order.model, source, output, order.version or None, order.top_k, order.restart,
            order.follow, record, within,
        )  # fmt: skip
        done = predict_all(
            bulk, run.client, run.settings, lambda now: run.reporter.progress(now.share, now.step)
        )
    return {"output": order.output or output.name, "rows": done.done, "errors": done.errors}


def export(order: ExportJob, run: Run) -> dict[str, Any]:
    """Export a module of torch."""
    exporting = importlib.import_module("worker.optimise.export")  # slow: it brings torch
    wishes = importlib.import_module("worker.repository.adding.wishes")
    notation = importlib.import_module("worker.repository.adding.notation").read_notation
    try:
        inputs = tuple(notation(text, "--input") for text in order.inputs)
    except ValueError as error:
        raise BadRequest(f"field 'inputs': {error}") from error
    wanted = wishes.Wishes(
        inputs, (), order.max_batch_size, "", run.path("labels", order.labels),
        run.path("tokenizer", order.tokenizer), order.parameters,
    )  # fmt: skip
    run.reporter.progress(0.05, "exporting")
    made = exporting.export(
        exporting.ExportOrder(
            _original(order.original, order, run), order.model, order.to, wanted,
            order.output_names, order.opset,
        ),
        run.repository, run.environ,
    )  # fmt: skip
    for note in (*made.notes, *(note for each in made.written for note in each.notes)):
        run.reporter.say(note)
    return {"model": order.model, "versions": [each.name for each in made.directories]}


def verify(order: VerifyJob, run: Run) -> dict[str, Any]:
    """Compare a version with another, or with the original."""
    verifying = importlib.import_module("worker.optimise.verify")
    if ":" in order.against:
        _check_callable(order.against, run.settings)
    elif not order.against:
        _check_exported(order, run)
    run.reporter.progress(0.05, "verifying")
    record = verifying.verify(
        verifying.VerifyOrder(
            order.model, order.version, order.against, run.path("weights", order.weights),
            json.dumps(order.arguments), run.data(order.data), order.label,
            order.precision, order.tolerances,
        ),
        run.repository, run.settings,
    )  # fmt: skip
    wanted = ("verdict", "reasons", "model", "version", "against", "precision", "batches")
    return {name: record[name] for name in wanted}


def optimise(order: OptimiseJob, run: Run) -> dict[str, Any]:
    """Make a faster version."""
    tuning = importlib.import_module("worker.optimise.tuning.optimise")
    began = time.monotonic()
    original = _original(order.original, order, run) if order.original else None
    wanted = tuning.OptimiseOrder(
        order.model, order.version, run.data(order.data), order.label, order.max_accuracy_drop,
        order.objective, order.budget_seconds, tuple(order.only), order.seed, original,
    )  # fmt: skip

    def say(line: str) -> None:
        run.reporter.say(line)
        run.reporter.progress(wanted.share_after(time.monotonic() - began), "optimising")

    say(f"optimising {order.model} within {order.budget_seconds:.0f} s")
    done = tuning.optimise(wanted, run.repository, run.environ, say)
    added = None if done.directory is None else done.directory.name
    return {"model": order.model, "version": added, "report_of": done.report_directory.name}


def edge(order: EdgeJob, run: Run) -> dict[str, Any]:
    """Make a bundle for phones and boards."""
    bundles = importlib.import_module("worker.optimise.edge.bundle")
    place = places.edge_directory(run.settings, order)
    _check_exported(order, run)
    run.reporter.progress(0.05, "making files")
    made = bundles.make_bundle(
        bundles.EdgeOrder(
            order.model, order.to, order.version, order.platform, place,
            run.data(order.data), order.label,
        ),
        run.repository, run.environ, run.reporter.say,
    )  # fmt: skip
    output = order.output or place.name
    return {"output": output, "files": sorted(made.manifest["files"])}


FUNCTIONS: Mapping[str, Callable[[Any, Run], dict[str, Any]]] = {
    "predict": predict, "export": export, "verify": verify, "optimise": optimise, "edge": edge,
}  # fmt: skip


def _check_exported(order: VerifyJob | EdgeJob, run: Run) -> None:
    """Raise unless the callable that a version's export.json names, if one does, may be imported.

    Whoever may write into the repository is not by that one who may have code run here.
    """
    verifying = importlib.import_module("worker.optimise.verify")
    reading = importlib.import_module("worker.repository.models")
    model = reading.read_model(run.repository, order.model, order.version or None)
    exported = verifying.exported_original(model.file.parent / verifying.EXPORTED_AS)
    if exported is not None:
        _check_callable(exported.path, run.settings)


def _original(path: str, order: ExportJob | OptimiseJob, run: Run) -> Any:
    _check_callable(path, run.settings)
    subjects = importlib.import_module("worker.optimise.subjects")
    weights = run.path("weights", order.weights)
    return subjects.Original(path, weights, json.dumps(order.arguments))


def _check_callable(path: str, settings: Settings) -> None:
    """Raise unless a callable stands in a module on the operator's list, and is of that module.

    A listed module may have imported others' functions (`os.system`): those are not on the list.
    """
    module_name, _, name = path.partition(":")
    places.check_module(settings, module_name)
    try:
        found = getattr(importlib.import_module(module_name), name, None)
    except Exception as error:  # a border: the operator's own code
        raise BadModel(f"{path}: importing {module_name} raised {error}") from error
    home = str(getattr(found, "__module__", ""))
    if found is None or not (home == module_name or home.startswith(f"{module_name}.")):
        raise BadModel(f"{path}: {module_name} has no {name!r} of its own")
