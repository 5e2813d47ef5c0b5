"""`ferry predict`: a model asked for every row of a file, behind everybody else's requests."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from ferry.commands.progress_bar import Tell, progress_bar
from ferry.errors import CannotStart
from shared.errors import BadSetting

if TYPE_CHECKING:
    from jobs.bulk.bulk import Bulk, Progress

OUTPUT_ENDINGS = (".ndjson", ".jsonl", ".parquet")


def add_predict(command: argparse.ArgumentParser) -> None:
    """Add the options."""
    command.description = (
        "Ask a running model for every row of a file or picture of a folder, in order, behind "
        "everybody else's requests. The same command goes on where an earlier one was stopped."
    )
    command.add_argument("name", metavar="MODEL")
    command.add_argument(
        "input", type=Path, metavar="INPUT",
        help="folder or .zip of pictures, .csv, .tsv, .ndjson or .parquet",
    )  # fmt: skip
    command.add_argument("output", type=Path, metavar="OUTPUT", help=".ndjson or .parquet")
    command.add_argument("--version", metavar="V", help="of the model, else the one that serves")
    command.add_argument(
        "--top-k", type=int, default=3, metavar="N", help="classes told of a row [3]"
    )
    command.add_argument("--restart", action="store_true", help="begin anew, writing over OUTPUT")
    command.add_argument(
        "--follow", action="store_true", help="go on when the version's content is replaced"
    )
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    bulk = import_module("jobs.bulk.bulk").Bulk(  # slow: it brings numpy
        options.name, options.input, options.output, options.version, options.top_k,
        options.restart, options.follow,
    )  # fmt: skip
    return predict(os.environ, bulk)


def predict(environ: Mapping[str, str], bulk: Bulk) -> int:
    """Answer every item of a file in another one; return the exit code, 1 if none has an answer.

    Raises BadSetting for options that cannot be, the errors of `jobs.bulk.bulk.predict`, and
    NoRedis when there is none to ask.
    """
    if bulk.output.suffix.lower() not in OUTPUT_ENDINGS:
        endings = " or ".join(OUTPUT_ENDINGS)
        raise BadSetting(f"OUTPUT {bulk.output}: expected a name that ends in {endings}")
    predict_all = import_module("jobs.bulk.bulk").predict
    redis_to_inspect = import_module("ferry.commands.inspect_redis").redis_to_inspect
    with redis_to_inspect(environ) as (settings, client), progress_bar(bulk.name) as tell:
        os.nice(settings.job_nice)  # on a full machine the model's instances go first
        try:
            done: Progress = predict_all(bulk, client, settings, partial(_progress, tell))
        except OSError as error:
            where, why = error.filename or bulk.output, error.strerror or error
            raise CannotStart(
                f"{where}: {why}; the same command goes on where this one stopped"
            ) from error
    print(f"{bulk.output}: {done.done} rows, {done.errors} of them errors", file=sys.stderr)
    return int(done.errors == done.done > 0)


def _progress(tell: Tell, now: Progress) -> None:
    tell(now.share, now.step)
