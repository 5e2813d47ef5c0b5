"""`ferry predict`: a model asked for every row of a file, behind everybody else's requests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from ferry.commands.inspect_redis import redis_to_inspect
from ferry.errors import CannotStart
from jobs.bulk.bulk import Bulk, Progress
from jobs.bulk.bulk import predict as predict_all
from shared.errors import BadSetting

OUTPUT_ENDINGS = (".ndjson", ".jsonl", ".parquet")


def predict(environ: Mapping[str, str], bulk: Bulk) -> int:
    """Answer every item of a file in another one; return the exit code, 1 if none has an answer.

    Raises BadSetting for options that cannot be, the errors of `jobs.bulk.bulk.predict`, and
    NoRedis when there is none to ask.
    """
    if bulk.output.suffix.lower() not in OUTPUT_ENDINGS:
        endings = " or ".join(OUTPUT_ENDINGS)
        raise BadSetting(f"OUTPUT {bulk.output}: expected a name that ends in {endings}")
    with redis_to_inspect(environ) as (settings, client), _bar(bulk.name) as told:
        try:
            done = predict_all(bulk, client, settings, told)
        except OSError as error:
            raise CannotStart(
                f"{error.filename or bulk.output}: {error.strerror}; the same command goes on "
                "where this one stopped"
            ) from error
    print(f"{bulk.output}: {done.done} rows, {done.errors} of them errors", file=sys.stderr)
    return int(done.errors == done.done > 0)


@contextmanager
def _bar(name: str) -> Iterator[Callable[[Progress], None]]:
    """Yield what shows progress on a terminal, and nothing elsewhere."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[errors]} errors"), TimeRemainingColumn(),
    )  # fmt: skip
    with Bar(
        *columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    ) as bar:
        task = bar.add_task(name, total=None, errors=0)
        yield lambda progress: bar.update(
            task, completed=progress.done, total=progress.total or None, errors=progress.errors
        )
