"""The rooms of the product, read from its folders, and its arrows, read from its imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("api", "shared", "worker", "ferry")


def product_modules(root: Path = ROOT) -> dict[str, Path]:
    """Return every module of the product by its dotted name, packages' `__init__` left out."""
    return {
        ".".join(file.relative_to(root).with_suffix("").parts): file
        for package in PACKAGES
        for file in sorted((root / package).rglob("*.py"))
        if file.name != "__init__.py"
    }


def imports(file: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports, in functions and for type checkers as well.

    `from package import name` yields `package.name`, which may be a module or stand in one.
    """
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide where a name comes from"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def arrows(root: Path = ROOT) -> dict[str, set[str]]:
    """Return for each module of the product the others that it imports."""
    known = product_modules(root)
    return {
        name: {found for dotted in imports(file) if (found := _module(dotted, known))} - {name}
        for name, file in known.items()
    }


def _module(dotted: str, known: Mapping[str, Path]) -> str | None:
    while dotted and dotted not in known:
        dotted = dotted.rpartition(".")[0]
    return dotted or None


def room(module: str) -> str:
    """Return a module's room: the folder below its package, or the module itself beside these."""
    return ".".join(module.split(".")[:2])


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return one circle of a graph, empty when there is none."""
    done: set[str] = set()
    way: list[str] = []

    def found(node: str) -> list[str]:
        if node in way:
            return way[way.index(node) :]
        if node in done:
            return []
        way.append(node)
        for target in sorted(graph.get(node, ())):
            if circled := found(target):
                return circled
        done.add(way.pop())
        return []

    return next((circled for node in sorted(graph) if (circled := found(node))), [])
