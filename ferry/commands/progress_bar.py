"""The bar that shows on a terminal how far a command is that takes long."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module

Tell = Callable[[float | None, str], None]
"""Takes the share that is done, from 0 to 1, or None while nobody knows, and what is done now."""


@contextmanager
def progress_bar(what: str) -> Iterator[Tell]:
    """Yield what shows progress and the time it takes on a terminal, and nothing elsewhere."""
    if not sys.stderr.isatty():
        yield _nothing
        return
    bars, consoles = import_module("rich.progress"), import_module("rich.console")
    columns = (
        bars.TextColumn("{task.description}", markup=False), bars.BarColumn(),
        bars.TaskProgressColumn(), bars.TextColumn("{task.fields[step]}", markup=False),
        bars.TimeElapsedColumn(), bars.TimeRemainingColumn(),
    )  # fmt: skip
    # subtle: on a copy of standard error, which `worker.optimise.quiet` turns away meanwhile.
    # Lines that are printed stand above it, and in a file where standard output is one.
    with (
        os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding="utf-8", errors="replace") as terminal,
        bars.Progress(
            *columns, console=consoles.Console(file=terminal), transient=True,
            redirect_stdout=sys.stdout.isatty(),
        ) as bar,
    ):  # fmt: skip
        task = bar.add_task(what, total=None, step="")

        def tell(share: float | None, step: str) -> None:
            bar.update(task, completed=share or 0.0, total=share and 1.0, step=step)

        yield tell


def _nothing(_share: float | None, _step: str) -> None:
    pass
