"""Whatever is wrong with a model's file, its reason names the file, and the other models serve."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from ferry_processes import running_worker
from formats_repository import CONFIGS, add_format
from loaded import PLAIN, floats, load, load_repository, own_imports, spec, tensor
from scripted_models import save_scripted
from waiting import wait_until
from worker_processes import Served, numbers, seen

from shared.errors import BadModel
from shared.settings import Settings
from worker.repository.models import read_model

KINDS = list(CONFIGS)
TEXT = {"python", "triton_python"}


@pytest.fixture(autouse=True)
def imports() -> Iterator[None]:
    with own_imports():
        yield


def garbage(kind: str) -> bytes:
    return b"class Model(:\n" if kind in TEXT else b"\x80garbage" * 50


@pytest.mark.parametrize("kind", KINDS)
def test_each_format_doubles(tmp_path: Path, kind: str) -> None:
    add_format(tmp_path, kind)

    backend = load_repository(tmp_path, kind, allow_pickle=True)

    assert backend.forward({"x": floats([1, 2], [3, 4])}, PLAIN)["y"].tolist() == [[2, 4], [6, 8]]


@pytest.mark.parametrize("damage", ["missing", "empty"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_or_empty_file_is_named(tmp_path: Path, kind: str, damage: str) -> None:
    file = add_format(tmp_path, kind)
    file.unlink() if damage == "missing" else file.write_bytes(b"")

    with pytest.raises(BadModel, match=rf"failed to load '{kind}'.*/1/\w+\.\w+.* missing or empty"):
        read_model(tmp_path, kind)


@pytest.mark.parametrize("damage", ["garbage", "cut"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_raises_and_nothing_worse(tmp_path: Path, kind: str, damage: str) -> None:
    file = add_format(tmp_path, kind)
    model = read_model(tmp_path, kind)
    content = file.read_bytes()
    file.write_bytes(garbage(kind) if damage == "garbage" else content[: len(content) // 2])

    with pytest.raises(Exception, match=r"\w"):
        load(model.config.backend, model.spec, file, allow_pickle=True)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in TEXT])
def test_a_file_of_an_unknown_kind_is_refused_in_our_words(tmp_path: Path, kind: str) -> None:
    file = add_format(tmp_path, kind)
    file.write_bytes(b"\x01\x02\xff\xfe" * 200)

    with pytest.raises(BadModel, match="no model that Ferry knows: bring "):
        load_repository(tmp_path, kind, allow_pickle=True)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good and a damaged model of each format."""
    repository = tmp_path_factory.mktemp("formats")
    for kind in KINDS:
        add_format(repository, kind)
        add_format(repository, kind, f"bad_{kind}").write_bytes(garbage(kind))
    return repository


@pytest.fixture(scope="module")
def worker(redis_url: str, repository: Path) -> Iterator[dict[str, Served]]:
    """Every model of the repository, seen from outside, served by one worker."""
    settings = Settings(
        redis_url=redis_url, key_prefix="formats", models=str(repository), allow_pickle=True
    )
    with ExitStack() as stack:
        stack.enter_context(running_worker(settings, wait_ready=False))
        names = [path.name for path in repository.iterdir()]
        yield {name: stack.enter_context(seen(settings, name)) for name in names}


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_makes_its_model_unready_for_a_reason_that_names_it(
    worker: dict[str, Served], repository: Path, kind: str
) -> None:
    bad = worker[f"bad_{kind}"]
    reasons: list[str] = []

    def failed() -> bool:
        reasons[:] = [record.reason for record in bad.records() if record.reason]
        return bool(reasons)

    wait_until(failed, 120, "a reason")

    assert reasons[0].startswith(f"failed to load 'bad_{kind}', {repository / f'bad_{kind}'}/1/")
    assert bad.ready() == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_serves_beside_the_damaged_ones(worker: dict[str, Served], kind: str) -> None:
    served = worker[kind]
    served.wait_ready()

    waiting = [served.push(value) for value in (1.0, 3.0)]
    found = [numbers(one.wait()).tolist() for one in waiting]

    assert found == [[[2.0, 2.0]], [[6.0, 6.0]]]


def test_a_joblib_file_is_refused_by_a_worker_that_was_not_allowed(
    redis_url: str, tmp_path: Path
) -> None:
    add_format(tmp_path, "joblib")
    settings = Settings(redis_url=redis_url, key_prefix="not-allowed", models=str(tmp_path))

    with running_worker(settings, wait_ready=False), seen(settings, "joblib") as served:
        wait_until(lambda: "joblib" in served.registry.snapshot().failures, 60, "a reason")
        reason = served.registry.snapshot().failures["joblib"]

    assert "runs whatever code is in it, so set FERRY_ALLOW_PICKLE=1" in reason


WRITTEN = "written-by-the-model"


class Saves(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, "written-by-the-model")
        return x


class Maps(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.from_file("written-by-the-model", True, 2)


class Inside(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Maps()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


class SavesWhenLoaded(torch.nn.Module):
    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, bool]:
        return torch.ones(2), self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        torch.save(state[0], "written-by-the-model")
        self.training = state[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Computes(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        saved = x * 2  # a name alone is nothing
        return saved


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", [Saves, Maps, Inside, SavesWhenLoaded])
def test_what_reads_or_writes_files_is_not_loaded(
    directory: Path, kind: type[torch.nn.Module]
) -> None:
    save_scripted(kind(), directory / "model.pt")

    with pytest.raises(BadModel, match=r"calls (save|from_file), which reads or writes files"):
        load("torchscript", spec([tensor("x")], [tensor("y")]), directory / "model.pt")

    assert not (directory / WRITTEN).exists()


@pytest.mark.parametrize(
    "line",
    [
        '(torch.save)(x, "written-by-the-model")',
        'save = ops.aten.save; save(x, "written-by-the-model")',
        'getattr(torch, "save")(x, "written-by-the-model")',
        'torch.\\\n      save(x, "written-by-the-model")',
        'getattr(torch, "sa" "ve")(x, "written-by-the-model")',
        'f = getattr; f(torch, "save")(x, "written-by-the-model")',
    ],
)
def test_however_the_code_calls_what_writes_files(directory: Path, line: str) -> None:
    save_scripted(Computes(), directory / "whole.pt")
    with ZipFile(directory / "whole.pt") as whole, ZipFile(directory / "model.pt", "w") as model:
        for name in whole.namelist():
            code, found, _ = whole.read(name).partition(b"    return")
            rest = f"    {line}\n    return x\n".encode() if found else b""
            model.writestr(name, code + rest)

    with pytest.raises(BadModel, match=r"calls (save|getattr), which reads or writes files"):
        load("torchscript", spec([tensor("x")], [tensor("y")]), directory / "model.pt")

    assert not (directory / WRITTEN).exists()


@pytest.mark.parametrize("whole", [Computes(), torch.nn.Sequential(Computes(), torch.nn.ReLU())])
def test_what_only_computes_is(directory: Path, whole: torch.nn.Module) -> None:
    save_scripted(whole, directory / "model.pt")  # torch writes getattr for parts without a name
    backend = load("torchscript", spec([tensor("x")], [tensor("y")]), directory / "model.pt")

    assert backend.forward({"x": floats([1, 2])}, PLAIN)["y"].tolist() == [[2.0, 4.0]]
