"""Which room may import which, and how wide a room may grow: docs/architecture.md says why."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from rooms import ROOT, arrows, circle, imports, product_modules, room

FLOORS = {
    "shared": (
        "errors datatypes names ticket messages model_spec redis_urls setting_checks cores "
        "open_files logs parent_death job_settings settings socket_paths",
        "inputs tracing wire",
        "bodies",
        "access courier",
        "request_queue",
        "registry",
        "drift exposition operations jobs",
        "history",
    ),
    "api": (
        "access payloads tracing",
        "readers",
        "infer metrics",
        "services",
        "pages server rpc",
        "routes",
        "openapi",
        "app",
        "wsgi",
    ),
    "worker": (
        "repository",
        "devices meter logs job tracing",
        "preflight",
        "backends ensembles",
        "instance",
        "optimise supervisor",
        "__main__",
    ),
    "jobs": ("bulk", "reporter", "functions", "worker", "dashboard", "__main__"),
    "ferry": ("errors", "up", "commands", "cli", "__main__"),
}
"""Each package from the ground up. A room knows the floors below it, modules beside it may know
each other, and no room knows what is above."""
BETWEEN = {
    "shared": (),
    "api": ("shared",),
    "worker": ("shared",),
    "jobs": ("shared", "api.access", "api.payloads", "worker.repository", "worker.optimise"),
    "ferry": ("shared", "jobs", "worker.preflight", "worker.repository", "worker.optimise"),
}
EXCEPT = {
    "api": ("shared.request_queue.worker_end",),
    "worker": ("shared.operations", "shared.courier"),
}
"""What of another package a package may know, and what of that it may not."""
NO_ROOM_FOR = {
    "api": {"torch", "onnxruntime", "samples", "tools", "apispec"},
    "worker": {"flask", "werkzeug", "gunicorn", "samples", "tools"},
    "jobs": {"flask", "werkzeug", "gunicorn", "torch", "onnxruntime", "samples", "tools"},
    "shared": {"flask", "werkzeug", "gunicorn", "torch", "onnxruntime", "samples", "tools"},
}
FLASK = {"flask", "werkzeug"}
WITH_FLASK = ("api.routes", "api.openapi", "api.server.body", "api.app")
BESIDE = ("bench", "chaos", "siege", "samples", "tests", "tools")
MAX_MODULES = 15
MODULES = product_modules()
ARROWS = arrows()


def below(module: str) -> set[str]:
    """Return the rooms of its own package that a module may import."""
    package = module.split(".", maxsplit=1)[0]
    rooms: set[str] = set()
    for floor in FLOORS[package]:
        beside = {f"{package}.{name}" for name in floor.split()}
        if room(module) in beside:
            single = {name for name in beside if name in MODULES}
            return rooms | {room(module)} | (single if room(module) in MODULES else set())
        rooms |= beside
    raise AssertionError(f"{module} stands on no floor: give its room a place in FLOORS")


def is_in(module: str, rooms: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in rooms)


def may_import(module: str, target: str) -> bool:
    package = module.split(".", maxsplit=1)[0]
    if target.split(".", maxsplit=1)[0] == package:
        return room(target) in below(module)
    return is_in(target, BETWEEN[package]) and not is_in(target, EXCEPT.get(package, ()))


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_rooms_below_its_own(module: str) -> None:
    assert not [target for target in sorted(ARROWS[module]) if not may_import(module, target)]


@pytest.mark.parametrize("package", FLOORS)
def test_the_page_of_the_architecture_has_the_same_floors(package: str) -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    floors = " < ".join(", ".join(floor.split()) for floor in FLOORS[package])

    assert f"    {package:<9} {floors}\n" in page


def test_no_file_is_in_a_circle() -> None:
    assert not circle(ARROWS)


@pytest.mark.parametrize("package", NO_ROOM_FOR)
def test_no_package_imports_a_library_of_the_other_side(package: str) -> None:
    broken = [
        f"{module} imports {dotted}"
        for module, file in MODULES.items()
        if module.split(".")[0] == package
        for dotted in imports(file)
        if dotted.split(".")[0] in NO_ROOM_FOR[package]
    ]
    assert not broken


def test_flask_is_known_where_routes_are() -> None:
    broken = [
        module
        for module, file in MODULES.items()
        if not is_in(module, WITH_FLASK)
        and FLASK & {dotted.split(".")[0] for dotted in imports(file)}
    ]
    assert not broken


def test_no_folder_is_too_wide() -> None:
    files = [*MODULES.values(), *(file for top in BESIDE for file in (ROOT / top).rglob("*.py"))]
    widths = Counter(file.parent for file in files if file.name != "__init__.py")

    assert not {folder: n for folder, n in widths.items() if n > MAX_MODULES}


def test_no_name_is_the_standard_librarys() -> None:
    names = {part for module in MODULES for part in module.split(".")}

    assert not names & (sys.stdlib_module_names - {"__main__"} | {"utils"})


@pytest.mark.parametrize(
    "file",
    sorted({file.parent / "__init__.py" for file in MODULES.values()}),
    ids=lambda file: str(file.relative_to(ROOT)),
)
def test_a_package_is_one_sentence(file: Path) -> None:
    source = file.read_text(encoding="utf-8")

    assert source.count("\n") == 1
    assert source.startswith('"""')
    assert source.endswith('."""\n')


def test_circles_and_hidden_imports_are_found(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(
        "import os.path\n"
        "if TYPE_CHECKING:\n    from api.app import create_app\n"
        "def f():\n    from torch.nn import Linear\n"
    )

    assert set(imports(file)) == {"os.path", "api.app.create_app", "torch.nn.Linear"}
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert not circle({"a": {"b", "c"}, "b": {"c"}, "c": set()})


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("shared.messages", "shared.wire.packing"),
        ("shared.wire.scripts", "shared.courier.courier"),
        ("api.payloads.v2_json", "api.infer.queues"),
        ("api.infer.queues", "shared.request_queue.worker_end"),
        ("worker.instance.loop", "worker.supervisor.supervisor"),
        ("worker.instance.loop", "api.app"),
        ("worker.ensembles.tensors", "shared.operations.dead_letters"),
        ("ferry.cli", "worker.instance.loop"),
        ("ferry.cli", "api.app"),
    ],
)
def test_an_arrow_upwards_is_refused(module: str, target: str) -> None:
    assert not may_import(module, target)


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [
        ("api.app", ["torch", "onnxruntime", "worker", "grpc", "apispec", "tools"]),
        ("api.rpc.server", ["torch", "onnxruntime", "worker", "flask", "gevent"]),
        ("worker.supervisor.supervisor, worker.instance.process", ["flask", "werkzeug", "api"]),
        ("worker.supervisor.supervisor", ["torch"]),
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
