"""`ferry export`: from a module of torch, or a scikit-learn pipeline, to versions of a model.

make the module -> prove eval() -> write each format -> compare it with the original
-> add all of them to the repository, or none
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tritonclient.grpc import model_config_pb2

from shared.errors import BadModel
from shared.settings import Settings
from worker.backends.loading import load_file
from worker.backends.torch_state_dict import arguments_of
from worker.devices import Placement
from worker.instance.tensor_adapter import adapted, backend_spec
from worker.optimise.example import FEW, Example, in_eval, prove_eval
from worker.optimise.export_formats import EXPORT_FORMATS, VALUE, ExportFormat, Job
from worker.optimise.figures import BY_PRECISION, Differences, Tolerances
from worker.optimise.quiet import quiet
from worker.optimise.sameness import batch_sizes, compared, probes, sized_batches
from worker.optimise.subjects import Original, Subject, loads_here
from worker.repository.adding.newcomer import LABEL_FILE, TOKENIZER_FILE
from worker.repository.adding.notation import Wanted
from worker.repository.adding.versions import Addition, NewVersion, add_versions
from worker.repository.adding.wishes import Wishes, conflicts, write_wishes
from worker.repository.config.completion import declare

MAX_BATCH_SIZE = 32
TOKEN_ORDER = ("input_ids", "attention_mask", "token_type_ids")
EXPORT_RECORD = "export.json"
UNSEEN = Tolerances(max_relative=1e-2, min_cosine=0.999, min_agreement=None)
"""Of numbers that no training saw: rounding is larger where they are."""


@dataclass(frozen=True)
class ExportOrder:
    """The options of `ferry export`."""

    original: Original
    name: str
    formats: Sequence[str]
    wishes: Wishes
    output_names: Sequence[str] = ()
    opset: int | None = None


@dataclass(frozen=True)
class Written:
    """One format that was written: its file, and what people should know of it."""

    format: str
    file: Path
    notes: Sequence[str]


@dataclass(frozen=True)
class Export:
    """The versions that were added, one for each format, and notes on each."""

    directories: Sequence[Path]
    written: Sequence[Written]
    notes: Sequence[str]


def export(order: ExportOrder, repository: Path, environ: Mapping[str, str]) -> Export:
    """Export a module and add what was written as new versions; raises BadModel in one sentence.

    The module is left as it was. Nothing is added unless each format answers as the module does.
    """
    _check_order(order)
    with quiet():
        module = order.original.make()
    message = model_config_pb2.ModelConfig(
        name=order.name, max_batch_size=order.wishes.max_batch_size or MAX_BATCH_SIZE
    )
    wishes = _token_wishes(order.wishes, module)
    notes = write_wishes(message, wishes)
    with in_eval(module), tempfile.TemporaryDirectory(prefix="ferry-export-") as scratch:
        with quiet():
            example = Example.of(module, message, order.output_names)
            prove_eval(example)
        written = [_written(name, order, example, Path(scratch)) for name in order.formats]
        declare(message, "output", example.outputs)
        _check_labels(order.wishes.labels, example)
        if "aoti" in order.formats:
            notes.append("an AOTI package is served with FERRY_ALLOW_MACHINE_CODE=1 alone")
        directories = _added(order, wishes, message, written, repository, environ)
    return Export(directories, written, notes)


def _check_order(order: ExportOrder) -> None:
    unknown = [each for each in order.formats if each not in EXPORT_FORMATS]
    if ":" not in order.original.path:
        raise BadModel(
            f"{order.original.path!r}: expected package.module:callable, or the joblib file of a "
            "scikit-learn pipeline"
        )
    if unknown or not order.formats:
        raise BadModel(
            f"--to {unknown[0] if unknown else ''}: expected one or several of "
            f"{', '.join(EXPORT_FORMATS)}"
        )
    twice = next((each for each in order.formats if order.formats.count(each) > 1), None)
    if twice is not None:
        raise BadModel(f"--to {twice} was given twice")
    if order.opset is not None and "onnx" not in order.formats:
        raise BadModel("--opset is for --to onnx alone")
    if order.wishes.max_batch_size == 0:
        raise BadModel("--max-batch-size 0: what is exported always has a batch dimension")
    if not order.wishes.inputs:
        raise BadModel(
            "say what goes in with --input, for one row: image:3x224x224, text, or NAME:TYPE:DIMS "
            "as x:FP32:4"
        )


def _token_wishes(wishes: Wishes, module: nn.Module) -> Wishes:
    """Return the wishes with the module's ids in the place of `text`; raises BadModel."""
    if not any(each.datatype == "BYTES" for each in wishes.inputs):
        return wishes
    if len(wishes.inputs) > 1 or wishes.inputs[0].name != "text":
        raise BadModel("--input of texts: no exported model takes strings, give --input text alone")
    if wishes.tokenizer is None:
        raise BadModel(
            "--input text: name the tokenizer that makes ids of texts with --tokenizer FILE"
        )
    arguments = arguments_of(module) or []
    names = [each.name for each in arguments if not each.has_default]
    names = [each.name for each in arguments if each.name in TOKEN_ORDER] or [
        *TOKEN_ORDER[: len(names)]
    ]
    inputs = tuple(Wanted(name, (-1,), "INT64") for name in names)
    return replace(wishes, inputs=inputs)


def _written(name: str, order: ExportOrder, example: Example, scratch: Path) -> Written:
    """Write one format and compare it with the module; raises BadModel naming the format."""
    known = EXPORT_FORMATS[name]
    file = scratch / name / known.filename
    file.parent.mkdir()
    rows = example.rows(FEW, seed=3)
    job = Job(example, example.tensors(rows.take(range(FEW))), order.opset)
    try:
        known.write(job, file)
        beside = sorted(each.name for each in file.parent.iterdir() if each != file)
        if beside:
            raise BadModel(f"it was written in several files, {', '.join(beside)} besides")
        figures = _proved(name, known, example, file)
    except BadModel as error:
        raise BadModel(f"--to {name}: {error}") from error
    job.notes.append(_said(figures, example))
    return Written(name, file, job.notes)


def _proved(name: str, known: ExportFormat, example: Example, file: Path) -> Differences:
    """Return how a written file differs from the module; raises BadModel when it does."""
    spec = example.spec
    with quiet():
        loaded = load_file(
            known.backend, backend_spec(spec), file, Placement("cpu", torch.get_num_threads()),
            trusted={known.backend},
        )  # fmt: skip
        candidate = Subject("what was written", spec, adapted(loaded, spec))
        original = example.subject()
        rows = example.rows(sum(batch_sizes(spec)), seed=4)
        figures = Differences(spec)
        try:
            figures = compared(original, candidate, sized_batches(rows, spec), rows)
            probed = _probed(original, candidate, example)
            faults = figures.faults(BY_PRECISION["FP32"], real=False)
            faults += probed.faults(UNSEEN, real=False)
        except BadModel as error:
            faults = [str(error)]
    if faults:
        raise BadModel(
            VALUE.format(fault=faults[0]) if name == "torchscript-trace"
            else f"it answers otherwise than the model: {faults[0]}"
        )  # fmt: skip
    return figures


def _probed(original: Subject, candidate: Subject, example: Example) -> Differences:
    """Compare on numbers of all sizes; those that the module refuses itself prove nothing."""
    found = Differences(example.spec)
    for batch in probes(example.spec, example.rows(64, seed=5)):
        try:
            expected = original.answer(batch)
        except Exception:  # a border: the operator's own code may refuse what is made up
            continue
        found.add(expected, candidate.asked(batch))
    return found


def _said(figures: Differences, example: Example) -> str:
    sizes = ", ".join(map(str, batch_sizes(example.spec)))
    largest = max(each.max_absolute for each in figures.differences.values())
    return f"differs by at most {largest:.2g} from the original, in batches of {sizes}"


def _check_labels(labels: Path | None, example: Example) -> None:
    """Raise BadModel unless a file of labels has a name for each class of the first output."""
    if labels is None:
        return
    if not labels.is_file():
        raise BadModel(f"--labels {labels}: no such file")
    first = example.spec.outputs[0]
    count, classes = len(labels.read_text(errors="replace").splitlines()), first.dims[-1]
    if classes > 1 and count != classes:
        raise BadModel(
            f"--labels {labels}: {count} names, and output {first.name!r} has {classes} classes"
        )


def _other_outputs(there: Any, message: Any) -> str:
    """Return how the module's outputs differ from those of a model that is there, if they do."""
    given = {each.name: each for each in message.output}
    for item in there.output:
        if item.name not in given:
            return f"the outputs are {', '.join(given)}, but there is {item.name!r}"
        dims = list(given[item.name].dims)
        fits = len(dims) == len(item.dims) and all(
            size in (-1, wanted) for size, wanted in zip(item.dims, dims, strict=True)
        )
        if not fits:
            return f"output {item.name!r} has the dims {dims}, but it is {list(item.dims)}"
    return ""


def _other_labels(there: Any, labels: Path | None, held: Path) -> str:
    """Return how a file of labels differs from that of a model that is there, if it does."""
    if labels is None:
        return ""
    name = there.output[0].label_filename
    if name and (held / name).is_file() and (held / name).read_bytes() == labels.read_bytes():
        return ""
    return f"--labels {labels}, but it has {'other names' if name else 'none'}"


def _added(
    order: ExportOrder,
    wishes: Wishes,
    message: Any,
    written: Sequence[Written],
    repository: Path,
    environ: Mapping[str, str],
) -> list[Path]:
    """Add the versions; raises BadModel, also where the model is there and takes something else."""

    def configure(there: Any) -> None:
        if there.input:
            held = repository / order.name
            said = conflicts(there, wishes) or _other_outputs(there, message)
            if said := said or _other_labels(there, order.wishes.labels, held):
                raise BadModel(f"{said} in the model that {held} holds")
            return
        there.MergeFrom(message)
        if message.max_batch_size > 1:
            there.dynamic_batching.SetInParent()
        if order.wishes.labels is not None:
            there.output[0].label_filename = LABEL_FILE

    versions = []
    for each in written:
        record = each.file.with_name(EXPORT_RECORD)
        record.write_text(json.dumps(_record(order, each), indent=2) + "\n", encoding="utf-8")
        versions.append(NewVersion({each.file.name: each.file, record.name: record}))
    named = {LABEL_FILE: order.wishes.labels, TOKENIZER_FILE: order.wishes.tokenizer}
    for file in filter(None, named.values()):
        if not file.is_file():
            raise BadModel(f"{file}: no such file")
    beside = {name: file for name, file in named.items() if file is not None}
    settings = replace(Settings.from_env(environ), allow_machine_code=True)  # it is our own
    addition = Addition(order.name, versions, configure, beside)
    return add_versions(repository, addition, loads_here(settings))


def _record(order: ExportOrder, written: Written) -> dict[str, Any]:
    """Return how a version was made, for `ferry verify` and for people."""
    weights = order.original.weights
    return {
        "original": order.original.path,
        "weights": None if weights is None else str(weights.resolve()),
        "arguments": order.original.arguments,
        "format": written.format,
        "torch": torch.__version__,
        "notes": [*written.notes],
    }
