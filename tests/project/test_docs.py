"""README.md and docs/ say what the code says: settings, routes, errors, rooms, names and links."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from api.app import create_app
from chaos.scenarios import SCENARIOS
from shared.errors import all_errors
from shared.settings import Settings
from tools import settings_table

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
ROOMS = ["api", "shared", "worker", "ferry", "jobs", "samples", "bench", "chaos", "siege", "tools"]
FOLDERS = "|".join([*ROOMS, "tests", "docs", "requirements"])
DOTTED = rf"`((?:{'|'.join(ROOMS)})(?:\.\w+)+)(?:\(\))?`"
OF_MODELS = {"model.py", "__main__.py"}  # files of any model, of any package
LARGEST_README_BYTES = 10_000
IMPLIED_METHODS = {"HEAD", "OPTIONS"}  # Flask answers them on every route


def text(page: str | Path) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def routes() -> list[tuple[str, str]]:
    """Return method and path of every route; making the application opens no connection."""
    app = create_app(Settings(redis_url="redis://nowhere.invalid"))
    return [
        (method, rule.rule)
        for rule in app.url_map.iter_rules()
        if rule.endpoint != "static"
        for method in sorted((rule.methods or set()) - IMPLIED_METHODS)
    ]


def rooms() -> dict[str, str]:
    """Return each package's folder and the first line of its docstring; a sample is no room."""
    return {
        name_of(init.parent): first_line(init)
        for room in ROOMS
        for init in sorted((ROOT / room).rglob("__init__.py"))
        if init.parent.parent.name != "samples"
    }


def first_line(file: Path) -> str:
    return (ast.get_docstring(ast.parse(text(file))) or "").partition("\n")[0]


@cache
def defined(file: Path) -> set[str]:
    """Return the functions, classes, methods and constants of a file, as `Class.method`."""
    return set(_defined(ast.parse(text(file)), ""))


def _defined(node: ast.AST, prefix: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            yield f"{prefix}{child.name}"
            yield from _defined(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.Assign):
            yield from (
                f"{prefix}{each.id}" for each in child.targets if isinstance(each, ast.Name)
            )
        elif isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name):
            yield f"{prefix}{child.target.id}"


def is_there(dotted: str) -> bool:
    """Tell whether a dotted name is a package, a module or something defined in one."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        path, rest = ROOT.joinpath(*parts[:length]), ".".join(parts[length:])
        if path.with_suffix(".py").is_file():
            return not rest or rest in defined(path.with_suffix(".py"))
        if path.is_dir():
            return not rest
    return False


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    """Return where a page's relative links lead; indented lines are examples."""
    prose = re.sub(r"^    .*$", "", text(page), flags=re.MULTILINE)
    found = re.findall(r"\]\(([^)\s]+)\)", prose)
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def test_the_readme_is_short() -> None:
    assert len(text("README.md").encode()) <= LARGEST_README_BYTES


def test_the_page_of_settings_is_what_make_docs_writes() -> None:
    assert text("docs/settings.md") == settings_table.page()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_names_no_setting_that_does_not_exist(page: Path) -> None:
    named = set(re.findall(r"FERRY_[A-Z][A-Z_]*", text(page)))

    assert named <= settings_table.variables()


@pytest.mark.parametrize(("method", "path"), routes())
def test_every_route_stands_in_its_page(method: str, path: str) -> None:
    assert f"| {method} | `{path}` |" in text("docs/http.md")


def test_the_page_of_routes_names_none_that_does_not_exist() -> None:
    named = set(re.findall(r"^\| ([A-Z]+) \| `(/[^`]*)` \|", text("docs/http.md"), re.MULTILINE))

    assert named == set(routes())


def test_every_error_stands_in_its_page_with_its_status_and_none_besides() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", text("docs/errors.md"), re.MULTILINE)

    assert sorted(rows) == sorted((error.code, str(error.status)) for error in all_errors())


def test_every_scenario_of_the_crash_programme_stands_in_its_page_and_none_besides() -> None:
    rows = re.findall(r"^\| (`[^|]+) \|", text("docs/chaos.md"), re.MULTILINE)

    assert {name for row in rows for name in re.findall(r"`([\w-]+)`", row)} == set(SCENARIOS)


def test_the_readme_has_a_line_for_every_room_its_docstring() -> None:
    rows = dict(re.findall(r"^\| `([a-z_/]+)/` \| (.+) \|$", text("README.md"), re.MULTILINE))

    assert rows == rooms()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_function_that_a_page_names_by_its_file_exists(page: Path) -> None:
    for file, function in re.findall(r"`([\w/]+\.py):([\w.]+)`", text(page)):
        assert function in defined(ROOT / file), f"{file}:{function}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_dotted_name_of_ours_on_a_page_exists(page: Path) -> None:
    for dotted in re.findall(DOTTED, text(page)):
        assert is_there(dotted), dotted


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_and_folder_that_a_page_names_exists(page: Path) -> None:
    for path in re.findall(rf"`((?:{FOLDERS})/[\w./-]*)(?::[\w.]+)?`", text(page)):
        assert (ROOT / path).exists(), path
    for script in re.findall(r"`(\w+\.lua)`", text(page)):
        assert (ROOT / "shared" / "scripts" / script).is_file(), script


@pytest.mark.parametrize("room", ROOMS)
def test_every_file_and_dotted_name_that_the_code_mentions_exists(room: str) -> None:
    for file in [*(ROOT / room).rglob("*.py"), *(ROOT / room).rglob("*.lua")]:
        near = [ROOT, file.parent, ROOT / "shared", ROOT / "shared" / "scripts"]
        for name in re.findall(r"`([\w./]+\.(?:py|lua))`", text(file)):
            assert name in OF_MODELS or any((folder / name).exists() for folder in near), (
                file,
                name,
            )
        for dotted in re.findall(DOTTED, text(file)):
            assert is_there(dotted), (file, dotted)
        for page in re.findall(r"(?<![\w/])docs/[\w/]+\.md", text(file)):
            assert (ROOT / page).is_file(), (file, page)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=name_of)
def test_no_link_of_a_page_is_dead(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_decisions_stand_in_order_each_number_once_and_on_the_page_that_the_index_says() -> None:
    index = text("docs/decisions/README.md")
    found: list[int] = []
    for page in sorted((ROOT / "docs" / "decisions").glob("*.md")):
        numbers = [int(number) for number in re.findall(r"^\*\*(\d+)\. ", text(page), re.MULTILINE)]
        assert numbers == sorted(numbers), page
        row = re.search(rf"\({page.name}\) \| ([^|]+) \|", index)
        assert page.name == "README.md" or (row and spans(row[1]) == numbers), page
        found += numbers

    assert sorted(found) == list(range(1, len(found) + 1))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_decision_that_a_page_links_to_stands_behind_the_link(page: Path) -> None:
    for said, link in re.findall(r"\[decisions? ([\d, and]+)\]\(([^)#]+)\)", text(page)):
        for number in re.findall(r"\d+", said):
            assert f"**{number}. " in text(page.parent / link), (number, link)


def spans(said: str) -> list[int]:
    """Read `1 to 3, 7` as 1, 2, 3, 7."""
    ends = [part.strip().split(" to ") for part in said.split(",")]
    return [number for part in ends for number in range(int(part[0]), int(part[-1]) + 1)]


def test_every_page_of_docs_is_listed_in_the_readme() -> None:
    listed = {
        name_of((ROOT / link.partition("#")[0]).resolve()) for link in links(ROOT / "README.md")
    }
    pages = {name_of(page) for page in PAGES if page.is_relative_to(ROOT / "docs")}

    assert {page for page in pages if not page.startswith("docs/decisions/")} <= listed
