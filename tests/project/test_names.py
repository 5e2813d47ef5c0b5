"""One name, one thing: classes, constants and keys of Redis, across the whole product."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from rooms import product_modules

MODULES = product_modules()
KEY = re.compile(r"\{(?:self\.)?_?(?:key_)?prefix\}:")


def classes(file: Path) -> Iterator[str]:
    """Yield the public classes of a module."""
    for node in _body(file):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.name


def constants(file: Path) -> Iterator[tuple[str, str]]:
    """Yield the constants of a module with their values as they are written."""
    for node in _body(file):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                yield from _assigned(target, node.value)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            yield from _assigned(node.target, node.value)


def _body(file: Path) -> list[ast.stmt]:
    return ast.parse(file.read_text(encoding="utf-8")).body


def _assigned(target: ast.expr, value: ast.expr) -> Iterator[tuple[str, str]]:
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for one, its_value in zip(target.elts, value.elts, strict=True):
            yield from _assigned(one, its_value)
    elif isinstance(target, ast.Name) and target.id.isupper() and not target.id.startswith("_"):
        yield target.id, ast.unparse(value)


def test_no_two_public_classes_have_one_name() -> None:
    found: dict[str, list[str]] = defaultdict(list)
    for module, file in MODULES.items():
        for name in classes(file):
            found[name].append(module)

    assert not {name: modules for name, modules in found.items() if len(modules) > 1}


def test_no_constant_is_defined_twice() -> None:
    found: dict[str, list[str]] = defaultdict(list)
    for module, file in MODULES.items():
        for name, _ in constants(file):
            found[name].append(module)

    assert not {name: modules for name, modules in found.items() if len(modules) > 1}


@pytest.mark.parametrize("module", MODULES)
def test_keys_of_redis_are_built_where_keys_are_listed(module: str) -> None:
    built = KEY.findall(MODULES[module].read_text(encoding="utf-8"))

    assert not built or module.endswith(".keys")


def test_names_and_keys_are_found(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text("A = 1\nB, C = 2, 3\nD: int = 4\n_E = 5\nclass F: ...\nclass _G: ...\n")

    assert list(constants(file)) == [("A", "1"), ("B", "2"), ("C", "3"), ("D", "4")]
    assert list(classes(file)) == ["F"]
    assert KEY.search('f"{prefix}:models"')
    assert KEY.search('f"{self._prefix}:models"')
