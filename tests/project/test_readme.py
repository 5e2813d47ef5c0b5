"""README.md names every setting, route, error code and module, and none that does not exist."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from api.app import create_app
from shared.errors import all_errors
from shared.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PACKAGES = ["api", "shared", "worker", "ferry", "samples", "bench", "chaos"]
IMPLIED_METHODS = {"HEAD", "OPTIONS"}  # Flask answers them on every route


def settings() -> list[tuple[str, str]]:
    """Return each setting's variable and its default as the table shows it."""
    return [
        (field.metadata["variable"], f"`{field.default}`" if field.default != "" else "unset")
        for field in fields(Settings)
    ]


def routes() -> list[tuple[str, str]]:
    """Return method and path of every route; making the application opens no connection."""
    app = create_app(Settings(redis_url="redis://nowhere.invalid"))
    return [
        (method, rule.rule)
        for rule in app.url_map.iter_rules()
        if rule.endpoint != "static"
        for method in sorted((rule.methods or set()) - IMPLIED_METHODS)
    ]


def modules() -> set[str]:
    """Return every module and script, by path; a package's own line stands for its __init__.py."""
    paths = [
        path
        for package in PACKAGES
        for pattern in ("*.py", "*.lua")
        for path in (ROOT / package).rglob(pattern)
    ]
    return {path.relative_to(ROOT).as_posix() for path in paths if path.name != "__init__.py"}


@pytest.mark.parametrize(("variable", "default"), settings())
def test_every_setting_stands_in_the_readme_with_its_default(variable: str, default: str) -> None:
    assert f"| `{variable}` | {default} |" in README


def test_the_readme_names_no_setting_that_does_not_exist() -> None:
    named = set(re.findall(r"FERRY_[A-Z][A-Z_]*", README))

    assert named <= {variable for variable, _ in settings()}


@pytest.mark.parametrize(("method", "path"), routes())
def test_every_route_stands_in_the_readme(method: str, path: str) -> None:
    assert f"| {method} | `{path}` |" in README


def test_the_readme_names_no_route_that_does_not_exist() -> None:
    named = set(re.findall(r"^\| ([A-Z]+) \| `(/[^`]*)` \|", README, re.MULTILINE))

    assert named == set(routes())


@pytest.mark.parametrize("error", all_errors(), ids=lambda error: error.code)
def test_every_error_stands_in_the_readme_with_its_status(error) -> None:
    assert f"| `{error.code}` | {error.status} |" in README


@pytest.mark.parametrize("module", sorted(modules()))
def test_every_module_stands_in_the_readme(module: str) -> None:
    assert f"| `{module}` |" in README


def test_the_readme_names_no_module_that_does_not_exist() -> None:
    named = set(re.findall(r"^\| `([a-z0-9_/]+\.(?:py|lua))` \|", README, re.MULTILINE))

    assert named == modules()
