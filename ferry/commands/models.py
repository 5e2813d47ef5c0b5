"""`ferry models ...`: the group of commands about the models of a repository.

Each action is one function that adds its parser; what it does is imported when it runs.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

Actions = Any
"""What `add_subparsers` returns; argparse has no public name for it."""


def add_models(command: argparse.ArgumentParser) -> None:
    """Make `command` the group."""
    command.description = (
        "Look at the models, choose which versions take requests, and check a repository."
    )
    actions = command.add_subparsers(required=True, metavar="ACTION")
    for add in ADDED:
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
    check.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    run = import_module(
        "ferry.commands.check"
    ).check_models  # imports the worker: only when it is asked for
    return int(run(os.environ, options.directory, load=options.load, as_json=options.json))


def _add_list(actions: Actions) -> None:
    action = actions.add_parser("list", help="show every version and which requests it gets")
    action.add_argument("--json", action="store_true", help="print one JSON list, no table")
    action.set_defaults(run=lambda o: _views("list_models", as_json=o.json))


def _add_show(actions: Actions) -> None:
    action = _about_one(actions, "show", "show all that is known of a model, as JSON")
    action.set_defaults(run=lambda o: _views("show_model", o.name))


def _add_load(actions: Actions) -> None:
    action = _about_one(actions, "load", "load a model, or load it again (mode explicit)")
    action.add_argument("--config", type=Path, metavar="FILE", help="JSON, in config.pbtxt's place")
    action.set_defaults(run=lambda o: _routes("load_model", o.name, o.config))


def _add_unload(actions: Actions) -> None:
    action = _about_one(actions, "unload", "unload a model (mode explicit)")
    action.set_defaults(run=lambda o: _routes("unload_model", o.name))


def _add_use(actions: Actions) -> None:
    action = _about_one(actions, "use", "send the requests that name no version to this one")
    action.add_argument("version", metavar="VERSION", help="a number, or latest")
    action.set_defaults(run=lambda o: _routes("use_version", o.name, o.version))


def _add_split(actions: Actions) -> None:
    action = _about_one(actions, "split", "share requests out among versions")
    action.add_argument("shares", nargs="+", metavar="VERSION=WEIGHT", help="or off alone")
    action.set_defaults(run=lambda o: _routes("split_model", o.name, o.shares))


def _add_shadow(actions: Actions) -> None:
    action = _about_one(actions, "shadow", "send a copy of each request to a version and compare")
    action.add_argument("version", metavar="VERSION", help="a number, or off")
    action.set_defaults(run=lambda o: _routes("shadow_model", o.name, o.version))


def _add_compare(actions: Actions) -> None:
    action = _about_one(actions, "compare", "show how the shadow's answers compare")
    action.add_argument("--json", action="store_true", help="print one JSON list, no table")
    action.set_defaults(run=lambda o: _views("compare_model", o.name, as_json=o.json))


def _about_one(actions: Actions, name: str, does: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(
        name, help=does, description=does.capitalize() + "."
    )
    parser.add_argument("name", metavar="MODEL")
    return parser


def _views(function: str, *values: object, **named: object) -> int:
    return int(
        getattr(import_module("ferry.commands.model_views"), function)(os.environ, *values, **named)
    )


def _routes(function: str, *values: object) -> int:
    return int(getattr(import_module("ferry.commands.model_routes"), function)(os.environ, *values))


ADDED: tuple[Callable[[Actions], None], ...] = (
    _add_list, _add_show, _add_load, _add_unload, _add_use, _add_split, _add_shadow, _add_compare,
    _add_check,
)  # fmt: skip
"""What the group has, in the order of its help."""
