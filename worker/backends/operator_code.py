"""Python that the operator keeps beside a model: found there, imported in the instance only."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from shared.errors import BadModel

MODULE = "ferry_model"
"""The name of a `model.py` in `sys.modules`: not its own, so it hides no other module."""


def make_importable(file: Path) -> None:
    """Make importable the modules in the model's version directory, then in its own directory."""
    for directory in (file.parent.parent, file.parent):
        if str(directory) not in sys.path:
            sys.path.insert(0, str(directory))


def import_file(file: Path) -> ModuleType:
    """Run a Python file and return its module; raises the file's own errors."""
    make_importable(file)
    spec = importlib.util.spec_from_file_location(MODULE, file)
    assert spec is not None and spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module  # before it runs: dataclasses and pickle look themselves up
    spec.loader.exec_module(module)
    return module


def named_callable(path: str, file: Path) -> Any:
    """Return the callable named "package.module:callable", looked for beside `file` first.

    Raises BadModel when there is no such thing, and the module's own errors on import.
    """
    make_importable(file)
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise BadModel(f"architecture {path!r}: expected package.module:callable")
    try:
        found = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        raise BadModel(f"architecture {path!r}: {error}") from error
    except AttributeError as error:
        raise BadModel(f"architecture {path!r}: {module_name} has no {name!r}") from error
    if not callable(found):
        raise BadModel(f"architecture {path!r} is no callable")
    return found
