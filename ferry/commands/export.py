"""`ferry export`: from a module of torch to versions in a repository."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ferry.commands.add import Given, told, wishes_of
from ferry.commands.progress_bar import progress_bar
from ferry.errors import CannotStart
from shared.settings import Settings
from worker.optimise.export import Export, ExportOrder, export
from worker.optimise.pipelines import export_pipeline, is_pipeline
from worker.optimise.subjects import Original
from worker.repository.adding.newcomer import model_name


@dataclass(frozen=True)
class Exported:
    """The options of the command that `ferry add` does not have."""

    original: str
    formats: Sequence[str]
    name: str = ""
    weights: Path | None = None
    arguments: str = "{}"
    output_names: Sequence[str] = ()
    opset: int | None = None


def run_export(environ: Mapping[str, str], options: Exported, given: Given) -> int:
    """Export, say what became of it, and have a Ferry that runs load it.

    Raises BadModel, CannotStart; then nothing was written.
    """
    settings = Settings.from_env(environ)
    for name in options.output_names:
        if ":" in name or not name:
            raise CannotStart(f"--output {name!r}: expected a name alone, the rest is found out")
    order = ExportOrder(
        Original(options.original, options.weights, options.arguments),
        options.name or _usual_name(options.original),
        options.formats, wishes_of(given), options.output_names, options.opset,
    )  # fmt: skip
    formats = ", ".join(options.formats) or "onnx"
    print(f"{order.name}: exporting {options.original} to {formats}", flush=True)
    with progress_bar(order.name) as tell:
        tell(None, "exporting")
        if is_pipeline(options.original):
            made = export_pipeline(order, Path(settings.models), settings)
        else:
            made = export(order, Path(settings.models), environ)
    _say(order.name, made)
    return told(environ, [order.name])


def _usual_name(original: str) -> str:
    """Return a name for the model: its callable's, or its file's."""
    name = original.partition(":")[2]
    return model_name(Path(f"{name}.pt")) if name else model_name(Path(original))


def _say(name: str, made: Export) -> None:
    for directory, written in zip(made.directories, made.written, strict=True):
        size = sum(each.stat().st_size for each in directory.iterdir())
        notes = "; ".join(written.notes)
        print(f"{name}: {directory}: {written.format}, {size / 1e6:.1f} MB, {notes}", flush=True)
    for note in made.notes:
        print(f"{name}: {note}", flush=True)
