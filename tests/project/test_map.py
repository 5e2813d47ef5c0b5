"""`python -m tools.map` prints modules with their roles, wide folders and long functions."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tools import map as house_map

SOURCE = '''"""Adds numbers.

More of it.
"""

class Sum:
    def add(self):
        """Add."""
        def inner():
            pass
        return inner

def alone():
    pass
'''


def module(path: str, source: str = SOURCE) -> house_map.Module:
    return house_map.Module(Path(path), ast.parse(source))


def test_a_modules_role_is_the_first_line_of_its_docstring() -> None:
    assert module("a/b.py").role == "Adds numbers."
    assert module("a/b.py", "x = 1\n").role == ""


def test_functions_are_named_by_file_class_and_method_with_their_lines() -> None:
    assert list(house_map.functions(module("a/b.py"))) == [
        ("a/b.py:Sum.add", 5),
        ("a/b.py:Sum.add.inner", 2),
        ("a/b.py:alone", 2),
    ]


def test_folders_are_as_wide_as_they_hold_modules() -> None:
    found = [module("a/__init__.py"), module("a/b.py"), module("a/c.py"), module("a/d/e.py")]

    assert house_map.folder_widths(found) == {"a": 2, "a/d": 1}


def test_every_module_has_a_role_and_the_map_prints_each_folder_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    house_map.main()

    printed = capsys.readouterr().out
    assert [each.path for each in house_map.modules() if not each.role] == []
    assert printed.count("\nworker/instance/\n") == 1
    assert "\nwidest folders, modules\n" in printed
    assert "\nlongest functions, lines\n" in printed
