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
"""What a `model.py` is called in `sys.modules`: no name of its own, so it hides nothing."""


def make_importable(file: Path) -> None:
    """Let code import what lies in the model's version directory, then in the model's directory."""
    for directory in (file.parent.parent, file.parent):
        if str(directory) not in sys.path:
            sys.path.insert(0, str(directory))


def import_file(file: Path) -> ModuleType:
    """Run a Python file and return its module; raises what it raises."""
    make_importable(file)
    spec = importlib.util.spec_from_file_location(MODULE, file)
    assert spec is not None and spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module  # before it runs: dataclasses and pickle look themselves up
    spec.loader.exec_module(module)
    return module


def named_callable(path: str, file: Path) -> Any:
    """Return what "package.module:callable" names, seen from beside `file`.

    Raises BadModel when there is no such thing, and what the module raises on import.
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
