"""Who may import whom: the API knows no torch, the worker no HTTP, what they share neither."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HTTP = {"flask", "werkzeug", "gunicorn"}
FORBIDDEN = {
    "api": {"torch", "onnxruntime", "worker", "ferry", "samples", "tools"},
    "worker": {*HTTP, "api", "ferry", "samples", "tools"},
    "shared": {*HTTP, "torch", "onnxruntime", "api", "worker", "ferry", "samples", "tools"},
}


def imported(file: Path) -> Iterator[str]:
    """Yield the first word of everything a file imports, inside functions as well."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide where a name comes from"
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_file_imports_what_its_package_must_not_know(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))

    broken = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files
        for name in imported(file)
        if name in FORBIDDEN[package]
    ]

    assert files
    assert not broken


def test_the_search_finds_imports_wherever_they_stand(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text("import os.path\ndef f():\n    from torch.nn import Linear\n")

    assert list(imported(file)) == ["os", "torch"]


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [
        ("api.app", ["torch", "onnxruntime", "worker", "grpc", "apispec", "tools"]),
        ("api.rpc.server", ["torch", "onnxruntime", "worker", "flask", "gevent"]),
        ("worker.supervisor.supervisor, worker.instance.process", ["flask", "werkzeug", "api"]),
        (
            "shared.request_queue.api_end, shared.registry.registry, shared.settings",
            ["flask", "torch"],
        ),
    ],
)
def test_importing_an_entry_point_brings_nothing_unwanted(
    modules: str, unwanted: list[str]
) -> None:
    code = f"import {modules}, sys; sys.exit(str({{*{unwanted}}} & set(sys.modules) or ''))"

    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert ended.stderr.strip() == ""


def test_no_module_is_named_after_the_standard_library_or_utils() -> None:
    names = {file.stem for package in FORBIDDEN for file in (ROOT / package).rglob("*.py")}

    assert not names & (sys.stdlib_module_names - {"__init__", "__main__"} | {"utils"})
