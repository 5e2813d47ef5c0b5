"""The house's rooms and who may import whom, read from the syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("api", "shared", "worker", "ferry")
VOCABULARY = (
    "errors",
    "datatypes",
    "names",
    "ticket",
    "messages",
    "model_spec",
    "setting_checks",
    "settings",
)


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Return every module of the product by its dotted name; packages without their `__init__`."""
    return {
        ".".join(file.relative_to(root).with_suffix("").parts): file
        for package in PACKAGES
        for file in sorted((root / package).rglob("*.py"))
        if file.name != "__init__.py"
    }


def imports(file: Path) -> Iterator[str]:
    """Yield what a file imports, dotted: in functions and under TYPE_CHECKING as well.

    `from package import name` yields `package.name`, which may be a module or something in one.
    """
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide where a name comes from"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def arrows(root: Path = ROOT) -> dict[str, set[str]]:
    """Return for each module the modules of the product that it imports."""
    known = modules(root)
    return {
        name: {target for found in imports(file) if (target := _module(found, known)) is not None}
        for name, file in known.items()
    }


def _module(dotted: str, known: dict[str, Path]) -> str | None:
    while dotted:
        if dotted in known:
            return dotted
        dotted = dotted.rpartition(".")[0]
    return None


def room(module: str) -> str:
    """Return the room that a module is in: its folder, or its own name beside the rooms."""
    return module.rpartition(".")[0] if module.count(".") > 1 else module
