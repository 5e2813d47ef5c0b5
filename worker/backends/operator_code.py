"""Python that the operator keeps beside a model: found there, imported in the instance only.

A model's file is imported as Triton does it, as a module of the package that is its version's
directory: so `from .helper import` works. What lies in that directory, or in the model's own, can
be imported by its plain name as well:

    import json       the standard library's, whatever lies beside the file
    import shared     theirs: of Ferry's packages they do not see one that they have by its name
    import redis      theirs where there is a redis.py, for all other code the library

An instance's process loads one model, so none of it is ever undone.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import torch

from shared.errors import BadModel
from worker.repository.file_kinds import FileKind
from worker.repository.sniffer import what_is

OURS = frozenset(
    {
        "api",
        "bench",
        "chaos",
        "ferry",
        "jobs",
        "samples",
        "shared",
        "siege",
        "tests",
        "tools",
        "worker",
    }
)
"""Ferry's own packages at the top, whose names an operator may use as well."""
NEVER_THEIRS = OURS | sys.stdlib_module_names | {"triton_python_backend_utils"}
"""The names that need no care, or that nothing beside a model may take."""

SCRIPT = "__main__"
"""The module of all that was defined in the script, or the notebook, that saved a pickle."""


@dataclass(frozen=True)
class Beside:
    """The directories whose modules a model's code finds: the version's first, then the model's.

    `package` is the version's directory as a package, which finds modules of both.
    """

    package: str
    directories: tuple[str, str]

    def find_spec(self, name: str, path: Any = None, _target: Any = None) -> ModuleSpec | None:
        """Find a module of theirs that is called as one of Ferry's; see `sys.meta_path`."""
        if path is None and name in OURS:
            return PathFinder.find_spec(name, self.directories)
        return None

    def has(self, file: object) -> bool:
        """Tell whether a file lies in one of the directories, not in a package there."""
        return isinstance(file, str) and str(Path(file).parent) in self.directories

    def has_module(self, name: str) -> bool:
        """Tell whether one of the directories holds a file of this module's name."""
        return any(Path(each, f"{name}.py").is_file() for each in self.directories)


def make_importable(file: Path) -> Beside:
    """Make the modules that lie beside a model's file importable, in this process for good."""
    version, model = file.parent, file.parent.parent
    beside = Beside(version.name, (str(version), str(model)))
    if beside in sys.meta_path:
        return beside
    names = {each.stem for directory in (version, model) for each in directory.glob("*.py")}
    hidden = {name for name in names if _is_installed(name)}
    if hidden:
        builtins.__import__ = _Import(beside, hidden)
    sys.meta_path.insert(0, beside)
    # At the end: at the head they would hide a library's own modules from it.
    sys.path += [entry for entry in beside.directories if entry not in sys.path]
    _forget({name for name in OURS if PathFinder.find_spec(name, beside.directories)})
    _import_package(beside)
    return beside


def import_file(file: Path) -> ModuleType:
    """Run a Python file and return its module; raises the file's own errors."""
    beside = make_importable(file)
    name = f"{beside.package}.{file.stem.replace('.', '_')}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses and pickle look themselves up
    spec.loader.exec_module(module)
    return module


def named_callable(path: str, file: Path) -> Any:
    """Return the callable named "package.module:callable", looked for beside `file` first.

    Raises BadModel when there is no such thing, and the module's own errors on import.
    """
    beside = make_importable(file)
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise BadModel(f"architecture {path!r}: expected package.module:callable")
    within = f"{beside.package}." if beside.has_module(module_name) else ""
    try:
        found = importlib.import_module(within + module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        raise BadModel(f"architecture {path!r}: {error}") from error
    except AttributeError as error:
        raise BadModel(f"architecture {path!r}: {module_name} has no {name!r}") from error
    if not callable(found):
        raise BadModel(f"architecture {path!r} is no callable")
    if not (_makes_modules(found) or _lies_in(found, beside)):
        raise BadModel(
            f"architecture {path!r} is not called: expected a module class, a function declared "
            "to return one, or code that lies beside the model"
        )
    return found


def _makes_modules(found: Any) -> bool:
    """Tell whether this is a class of torch modules, or a function declared to return one."""
    if isinstance(found, partial):
        return _makes_modules(found.func)
    if not isinstance(found, type):
        try:
            found = get_type_hints(found).get("return")
        except Exception:  # a border: of what is no function, or has hints that nobody can read
            return False
    return isinstance(found, type) and issubclass(found, torch.nn.Module)


def _lies_in(found: Any, beside: Beside) -> bool:
    """Tell whether a callable is defined in code of the model's directories, or is made of it."""
    if isinstance(found, partial):
        return _lies_in(found.func, beside)
    owner = found if hasattr(found, "__qualname__") else type(found)
    module = sys.modules.get(getattr(owner, "__module__", None) or "")
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and any(
        Path(file).is_relative_to(each) for each in beside.directories
    )


class NamesBeside:
    """The classes and functions that a pickle names, looked for beside its file as well."""

    def __init__(self, file: Path, kind: FileKind) -> None:
        """Make importable what lies beside `file`."""
        self._beside = make_importable(file)
        self._file = file
        self._what = kind.what

    def find(self, usual: Callable[[str, str], Any], module: str, name: str) -> Any:
        """Return what a pickle calls `module` and `name`, `usual` finds what is installed.

        Raises BadModel when it cannot be imported.
        """
        if module == SCRIPT:
            return self._of_script(name)
        within = self._beside.package + "." if self._beside.has_module(module) else ""
        try:
            return usual(within + module, name)
        except (ImportError, AttributeError) as error:
            raise self._missing(f"{module}.{name}", error) from error

    def _of_script(self, name: str) -> Any:
        """Return what the script that saved the file defined, from the .py file that defines it."""
        for directory in self._beside.directories:
            for source in sorted(Path(directory).glob("*.py")):
                if name.partition(".")[0] in _defined(source):
                    found = importlib.import_module(f"{self._beside.package}.{source.stem}")
                    for part in name.split("."):
                        found = getattr(found, part)
                    return found
        raise self._missing(name, "the script that saved the file defined it")

    def _missing(self, name: str, why: object) -> BadModel:
        return BadModel(
            f"{self._what}: {name} cannot be imported ({why}): install its package, or put the "
            f".py file that defines it beside {self._file.name} or in the model's directory"
        )


def load_pipeline(file: Path) -> Any:
    """Load a joblib file, its classes found beside it; raises BadModel or its code's own errors."""
    import joblib  # noqa: PLC0415  comes with scikit-learn, which is an extra
    from joblib.numpy_pickle import NumpyUnpickler  # noqa: PLC0415

    names, usual = NamesBeside(file, what_is(file)), NumpyUnpickler.find_class

    def find_class(self: Any, module: str, name: str) -> Any:
        return names.find(partial(usual, self), module, name)

    NumpyUnpickler.find_class = find_class
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")  # one of another scikit-learn warns, and may work
            return joblib.load(file)
    finally:
        NumpyUnpickler.find_class = usual


def _defined(source: Path) -> set[str]:
    """Return the names that a Python file defines, without running it; none of a broken one."""
    try:
        tree = ast.parse(source.read_bytes())
    except (SyntaxError, ValueError):
        return set()
    names = set()
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def _is_installed(name: str) -> bool:
    """Tell whether a library's module has the name of a file beside the model."""
    if name in NEVER_THEIRS:
        return False
    return name in sys.modules or PathFinder.find_spec(name, sys.path) is not None


def _forget(names: set[str]) -> None:
    """Take packages of Ferry out of `sys.modules`; who imported them already keeps them.

    subtle: an instance must import nothing of Ferry's once it runs an operator's code.
    """
    for name in [name for name in sys.modules if name.partition(".")[0] in names]:
        del sys.modules[name]


def _import_package(beside: Beside) -> None:
    """Import the version's directory as a package, which it needs no `__init__.py` to be."""
    version, model = beside.directories
    init = Path(version, "__init__.py")
    spec: ModuleSpec | None = ModuleSpec(beside.package, None, is_package=True)
    if init.is_file():
        spec = importlib.util.spec_from_file_location(beside.package, init)
    assert spec is not None, "a .py file has a spec"
    spec.submodule_search_locations = [version, model]
    module = importlib.util.module_from_spec(spec)
    sys.modules[beside.package] = module
    if spec.loader is not None:
        spec.loader.exec_module(module)


@dataclass(frozen=True)
class _Import:
    """`__import__` that gives files beside the model what is `hidden` there by libraries."""

    beside: Beside
    hidden: set[str]
    usual: Any = builtins.__import__

    def __call__(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """Import a module, of theirs when one of their files asks for such a name."""
        top, file = name.partition(".")[0], (globals or {}).get("__file__")
        is_theirs = not level and top in self.hidden and self.beside.has(file)
        if is_theirs and Path(str(file)).stem != top:  # within itself it is the library's
            name, top = f"{self.beside.package}.{name}", f"{self.beside.package}.{top}"
        found: ModuleType = self.usual(name, globals, locals, fromlist, level)
        return found if fromlist or not is_theirs else sys.modules[top]
