"""An operator's own modules beside a model: found by every name, and hiding none of anybody's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ferry_processes import ROOT, running_worker
from formats_repository import add_format
from loaded import PLAIN, floats, load, own_imports, spec, tensor
from worker_processes import numbers, seen

from shared.settings import Settings
from worker.backends.base import Backend
from worker.backends.operator_code import OURS, import_file, named_callable

MODEL = """
{}

class Model:
    def forward(self, inputs):
        return {{"y": inputs["x"] * {}}}
"""
NAMES = (
    "shared",
    "worker",
    "api",
    "ferry",
    "samples",
    "tools",
    "utils",
    "redis",
    "click",
    "model2",
)
"""Ferry's packages, a name of everybody's, libraries that are installed, loaded or not."""


@pytest.fixture(autouse=True)
def imports() -> Iterator[None]:
    with own_imports():
        yield


def python(file: Path, head: str, factor: str) -> Backend:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(MODEL.format(head, factor))
    return load("python", spec([tensor("x")], [tensor("y")]), file)


def doubled(backend: Backend) -> list[list[float]]:
    found: list[list[float]] = backend.forward({"x": floats([1, 2])}, PLAIN)["y"].tolist()
    return found


@pytest.mark.parametrize("name", [*NAMES, "types", "queue"])
def test_a_helper_beside_the_model_is_found_by_a_relative_import(tmp_path: Path, name: str) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / f"{name}.py").write_text("FACTOR = 3\n")

    backend = python(tmp_path / "m" / "1" / "model.py", f"from .{name} import FACTOR", "FACTOR")

    assert doubled(backend) == [[3.0, 6.0]]


FILES = [f"{name}.py" for name in NAMES]
PACKAGES = [f"{name}/__init__.py" for name in NAMES if name not in {"redis", "click"}]
"""Of a library's name only a file is theirs: a package is a copy of the library."""


@pytest.mark.parametrize("filename", FILES + PACKAGES)
@pytest.mark.parametrize("directory", ["m/1", "m"])
def test_a_helper_is_found_by_its_own_name(tmp_path: Path, filename: str, directory: str) -> None:
    name = filename.split("/", maxsplit=1)[0].removesuffix(".py")
    file = tmp_path / directory / filename
    file.parent.mkdir(parents=True)
    file.write_text("FACTOR = 3\n\n\ndef late():\n    return FACTOR\n")

    head = f"import {name}\nfrom {name} import FACTOR"
    backend = python(tmp_path / "m" / "1" / "model.py", head, f"FACTOR * {name}.late() / 3")

    assert doubled(backend) == [[3.0, 6.0]]


def test_an_import_at_the_first_request_finds_it_too(tmp_path: Path) -> None:
    code = (
        "class Model:\n"
        "    def forward(self, inputs):\n"
        "        import importlib\n"
        "        import shared, worker.deep\n"
        "        assert importlib.import_module('shared') is shared\n"
        "        return {'y': inputs['x'] * shared.FACTOR * worker.deep.FACTOR}\n"
    )
    version = tmp_path / "m" / "1"
    (version / "worker").mkdir(parents=True)
    (version / "worker" / "deep.py").write_text("FACTOR = 2\n")
    (version / "shared.py").write_text("FACTOR = 3\n")
    (version / "model.py").write_text(code)

    backend = load("python", spec([tensor("x")], [tensor("y")]), version / "model.py")

    assert doubled(backend) == [[6.0, 12.0]]


def test_a_helper_named_as_a_library_hides_it_from_nobody_else(tmp_path: Path) -> None:
    (tmp_path / "redis.py").write_text("import redis\n\nREAL = redis.Redis\nFACTOR = 3\n")
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").write_text("import redis\nREAL = redis.Redis\n")

    module = import_file_of(tmp_path, "import shop, redis\nFACTOR = redis.FACTOR\n")

    import redis  # noqa: PLC0415

    assert module.FACTOR == 3  # type: ignore[attr-defined]
    assert module.shop.REAL is module.redis.REAL is redis.Redis  # type: ignore[attr-defined]


def import_file_of(directory: Path, code: str) -> object:
    file = directory / "m.py"
    file.write_text(code)
    return import_file(file)


def test_the_standard_library_s_names_stay_its_own(tmp_path: Path) -> None:
    (tmp_path / "queue.py").write_text("raise RuntimeError\n")
    (tmp_path / "this.py").write_text("raise RuntimeError\n")

    module = import_file_of(tmp_path, "import queue\nfrom string import Template\n")

    assert module.queue.Queue  # type: ignore[attr-defined]


def test_an_architecture_and_its_flat_helpers_may_be_called_as_ours(tmp_path: Path) -> None:
    (tmp_path / "shared.py").write_text(
        "from .layers import width\n\n\ndef net():\n    return width\n"
    )
    (tmp_path / "layers.py").write_text("width = 7\n")

    assert named_callable("shared:net", tmp_path / "weights.pt")() == 7


def test_a_version_directory_may_have_an_init(tmp_path: Path) -> None:
    (tmp_path / "__init__.py").write_text("FACTOR = 5\n")

    module = import_file_of(tmp_path, "from . import FACTOR\n")

    assert module.FACTOR == 5  # type: ignore[attr-defined]


def test_every_package_of_ours_is_known_as_ours() -> None:
    packages = {file.parent.name for file in ROOT.glob("*/__init__.py")}

    assert packages <= OURS


SPAWNS = """
from multiprocessing import get_context


def triple(x):
    return 3 * x


if __name__ != "__mp_main__":
    from concurrent.futures import ProcessPoolExecutor

    def main():
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(triple, 2).result(timeout=60)
"""


def test_a_process_that_a_model_spawns_finds_the_model_s_code(tmp_path: Path) -> None:
    version = tmp_path / "m" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(SPAWNS)
    code = (
        "from pathlib import Path\n"
        "from worker.backends.operator_code import import_file\n"
        f"if __name__ == '__main__': print(import_file(Path({str(version / 'model.py')!r})).main())"
    )

    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert ended.stdout == "6\n", ended.stderr


def test_a_worker_serves_models_whose_helpers_are_called_as_its_own_modules(
    redis_url: str, tmp_path: Path
) -> None:
    for model, factor in (("one", 3), ("two", 5)):
        file = add_format(tmp_path, "python", model)
        for name in ("shared", "worker", "api", "ferry", "redis", "utils"):
            (file.parent / f"{name}.py").write_text(f"FACTOR = {factor}\n")
        head = "import shared, worker, api, ferry, redis\nfrom .utils import FACTOR"
        python(file, head, "FACTOR * shared.FACTOR / api.FACTOR * redis.FACTOR / worker.FACTOR")
    settings = Settings(redis_url=redis_url, key_prefix="own-names", models=str(tmp_path))

    with running_worker(settings), seen(settings, "one") as one, seen(settings, "two") as two:
        answers = [numbers(each.push(1.0).wait()).tolist() for each in (one, two)]

    assert answers == [[[3.0, 3.0]], [[5.0, 5.0]]]
