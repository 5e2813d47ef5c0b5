"""Reads a program of torch.export, from a file that may be anybody's, and runs nothing of it.

torch keeps plain tensors as raw bytes. All else (subclasses of tensors, opaque objects) it
pickles, and unpickles on loading: such a file runs code, so it is refused. The graph itself is
text that torch evaluates in part: `graph_texts.py` looks at it first.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch._export.serde import serialize
from torch.export.pt2_archive import _package
from torch.utils import _pytree as pytree

from shared.errors import BadModel
from worker.backends.programs.graph_texts import check_texts, not_torchs
from worker.repository.file_kinds import AOTI

FORCE_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
FACTORIES = SimpleNamespace(
    **{each.__name__: each for each in (list, dict, set, tuple, int, float, str, bool)}
)
"""What a `defaultdict` among a program's arguments may make of a missing entry."""


def load_program(file: Path) -> Any:
    """Return the ExportedProgram in `file`, on the CPU wherever it was exported.

    Raises BadModel when loading would run foreign code.
    """
    with _no_pickle(), _no_code(), _on_the_cpu():
        try:
            return torch.export.load(file)
        except pickle.UnpicklingError as error:
            raise BadModel(
                "the program holds pickled Python objects, which could run any code; export it "
                f"with plain tensors only ({str(error).splitlines()[0]})"
            ) from error


@contextmanager
def _no_pickle() -> Iterator[None]:
    """Keep torch.export.load from unpickling anything but tensors, as long as the block runs.

    subtle: it calls torch.load with weights_only=False for tensors of other classes, and falls back
    to that when the example inputs fail. torch's own variable overrules both; opaque objects go
    through pickle.loads, which is taken away from that module.
    """

    def refuse(_: bytes) -> Any:
        raise pickle.UnpicklingError("an opaque object")

    package: Any = _package
    before, its_pickle = os.environ.get(FORCE_WEIGHTS_ONLY), package.pickle
    os.environ[FORCE_WEIGHTS_ONLY] = "1"
    package.pickle = SimpleNamespace(loads=refuse, dumps=its_pickle.dumps)
    try:
        yield
    finally:
        package.pickle = its_pickle
        del os.environ[FORCE_WEIGHTS_ONLY]
        if before is not None:
            os.environ[FORCE_WEIGHTS_ONLY] = before


@contextmanager
def _on_the_cpu() -> Iterator[None]:
    """Have torch.export.load read each device in a program as the CPU, as long as the block runs.

    This machine may not have the one on which it was exported. Nor may tensors in it, as the
    example inputs, be loaded to that.
    """
    own: Any = serialize
    package: Any = _package
    everywhere: Any = torch
    before, load = own.deserialize_device, torch.load
    patched = [each for each in (own, package) if hasattr(each, "deserialize_device")]
    for module in patched:
        module.deserialize_device = lambda _: torch.device("cpu")
    everywhere.load = partial(load, map_location="cpu")
    try:
        yield
    finally:
        everywhere.load = load
        for module in patched:
            module.deserialize_device = before


@contextmanager
def _no_code() -> Iterator[None]:
    """Keep torch.export.load from running what a graph says as code, as long as the block runs.

    subtle: the check stands where torch has read the graph and made nothing of it yet, so there is
    no second reader of the archive that could see other bytes than torch does.
    """
    own: Any = serialize
    tree: Any = pytree
    package: Any = _package
    read, its_importlib, machine = own._bytes_to_dataclass, tree.importlib, package._load_aoti

    def checked(kind: Any, content: bytes) -> Any:
        found = read(kind, content)
        check_texts(found)
        return found

    own._bytes_to_dataclass = checked
    tree.importlib = SimpleNamespace(import_module=_factories)
    package._load_aoti = _refuse_machine_code
    try:
        yield
    finally:
        own._bytes_to_dataclass = read
        tree.importlib, package._load_aoti = its_importlib, machine


def _refuse_machine_code(*_: Any) -> Any:
    raise BadModel(AOTI.sentence)


def _factories(module: str) -> Any:
    if module != "builtins":
        raise not_torchs("module", module)
    return FACTORIES
