"""Prints every module with its role, the widest folders and the longest functions."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("api", "shared", "worker", "ferry", "jobs", "samples", "bench", "chaos", "tools")
WIDEST_FOLDERS = 3
LONGEST_FUNCTIONS = 10


class Module(NamedTuple):
    """One Python file, by its path from the root."""

    path: Path
    tree: ast.Module

    @property
    def role(self) -> str:
        """The first line of its docstring."""
        return first_line(self.tree)


class Function(NamedTuple):
    """One function or method: `file.py:Class.method`, and its lines."""

    name: str
    line_count: int


def first_line(tree: ast.Module) -> str:
    """Return the first line of a module's docstring, empty without one."""
    return (ast.get_docstring(tree) or "").partition("\n")[0]


def modules(packages: tuple[str, ...] = PACKAGES) -> list[Module]:
    """Return all modules of the packages, parsed, folder by folder."""
    paths = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    return [
        Module(path.relative_to(ROOT), ast.parse(path.read_text(encoding="utf-8")))
        for path in sorted(paths, key=lambda path: (path.parent, path.name))
    ]


def functions(module: Module) -> Iterator[Function]:
    """Yield a module's functions and methods, nested ones too."""
    yield from _functions(module.tree, f"{module.path.as_posix()}:")


def _functions(node: ast.AST, prefix: str) -> Iterator[Function]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{prefix}{child.name}"
            if not isinstance(child, ast.ClassDef):
                yield Function(name, (child.end_lineno or child.lineno) - child.lineno + 1)
            yield from _functions(child, f"{name}.")
        else:
            yield from _functions(child, prefix)


def folder_widths(found: list[Module]) -> Counter[str]:
    """Return how many modules each folder holds, `__init__.py` and `__main__.py` aside."""
    return Counter(
        module.path.parent.as_posix() for module in found if not module.path.name.startswith("__")
    )


def main() -> None:
    """Print the map."""
    found = modules()
    folder = ""
    for module in found:
        if (parent := module.path.parent.as_posix()) != folder:
            folder = parent
            print(f"\n{folder}/")
        print(f"  {module.path.name:28} {module.role}")
    print("\nwidest folders, modules")
    for name, count in folder_widths(found).most_common(WIDEST_FOLDERS):
        print(f"  {count:3} {name}/")
    print("\nlongest functions, lines")
    longest = sorted((function for module in found for function in functions(module)), key=_length)
    for function in longest[:LONGEST_FUNCTIONS]:
        print(f"  {function.line_count:3} {function.name}")


def _length(function: Function) -> tuple[int, str]:
    return -function.line_count, function.name


if __name__ == "__main__":
    main()
