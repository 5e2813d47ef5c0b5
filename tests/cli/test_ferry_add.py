"""`ferry add`: a file becomes a version of a model as a whole, or is refused and not copied."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from ferry_processes import running_worker
from formats_repository import ARCHITECTURE, OWN, add_format
from onnx import TensorProto, helper, numpy_helper
from scripted_models import save_scripted
from waiting import wait_until

from ferry.cli import main
from shared.registry.registry import Registry
from shared.settings import Settings
from shared.wire.client import connect
from worker.repository.adding import staging
from worker.repository.check import Tried
from worker.repository.model_config import read_config
from worker.repository.models import model_names

pytestmark = pytest.mark.usefixtures("forked")
Add = Callable[..., tuple[int, str, str]]
PICKLED = """
import joblib, torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import LabelEncoder

class Mine(torch.nn.Linear):
    pass

if __name__ == "__main__":
    torch.save(Mine(2, 3), "whole.pt")
    joblib.dump(LabelEncoder().fit([1, 2]), "numbers.joblib")
    texts = make_pipeline(CountVectorizer(), LogisticRegression())
    joblib.dump(texts.fit(["good day", "bad day"], ["positive", "negative"]), "texts.joblib")
"""


class Sums(torch.nn.Module):
    """Takes two inputs; one output follows the size of the first, one has a number for each row."""

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"doubled": x * 2.0, "sum": ids.sum(1)}


class OneRow(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(1, 2) * 2.0


class Looked(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(8, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.words(ids).mean(1)
        return found


class NoBatch(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.outer(x, torch.ones(3))


class Channels(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


MODULES = {
    "sums": Sums(), "one_row": OneRow(), "looked": Looked(), "no_batch": NoBatch(),
    "channels": Channels(),
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a model file of each kind, by the name of its format or class."""
    directory = tmp_path_factory.mktemp("files")
    for kind in ("torchscript", "torch_export", "state_dict", "safetensors", "onnx", "joblib"):
        file = add_format(directory / "formats", kind)
        file.rename(directory / f"{kind}{file.suffix}")
    (directory / "doubling.py").write_text(ARCHITECTURE)
    (directory / "own").mkdir()
    (directory / "own" / "model.py").write_text(
        OWN.replace("inputs['x'] * 2", "double(inputs['x'])")
    )
    (directory / "own" / "helper.py").write_text("def double(x):\n    return x * 2\n")
    source = (directory / "own" / "model.py").read_text()
    (directory / "own" / "model.py").write_text(f"from helper import double\n{source}")
    (directory / "empty").mkdir()
    for name, module in MODULES.items():
        save_scripted(module.eval(), directory / f"{name}.pt")
    return directory


@pytest.fixture
def add(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Add:
    """Run `ferry add` from the files' directory into ./models; return exit code, output, errors."""
    for name in [name for name in os.environ if name.startswith("FERRY_") or name == "REDIS_URL"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FERRY_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("FERRY_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(files)

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["add", *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the trial, which takes seconds, where it is not the subject."""
    monkeypatch.setattr(staging, "trial_in_a_process", lambda _: lambda _: Tried())


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "models"


def tensors(repository: Path, name: str) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Return batch size, inputs and outputs that a model's config, as it is written, declares."""
    spec = read_config(repository / name / "config.pbtxt", "1").spec
    sides = ({t.name: (t.datatype, *t.dims) for t in side} for side in (spec.inputs, spec.outputs))
    return (spec.max_batch_size, *sides)


@pytest.mark.parametrize("file", ["onnx.onnx", "torch_export.pt2"])
def test_a_file_that_says_everything_needs_no_option(add: Add, repository: Path, file: str) -> None:
    code, out, _ = add(file)

    name = file.partition(".")[0]
    assert code == 0, out
    assert out.startswith(f"{name}: {repository}/{name}/1 from {file}, ")
    assert out.endswith(f"no Ferry runs here: `ferry up --models {repository}` serves it\n")
    size, inputs, outputs = tensors(repository, name)
    assert (size, [*inputs.values()], [*outputs.values()]) == (4, [("FP32", 2)], [("FP32", 2)])
    assert (repository / name / "config.pbtxt").read_text().startswith(f'name: "{name}"\n')


def test_outputs_and_types_are_learned_by_running_the_model(add: Add, repository: Path) -> None:
    assert add("sums.pt", "--input", "x:-1", "--input", "ids:5:INT64")[0] == 0
    code, out, _ = add("looked.pt", "--input", "ids:-1")

    assert code == 0
    assert "looked: ids: INT64, since FP32 is refused\n" in out
    assert tensors(repository, "sums") == (
        4, {"x": ("FP32", -1), "ids": ("INT64", 5)}, {"doubled": ("FP32", -1), "sum": ("INT64", 1)},
    )  # fmt: skip
    assert tensors(repository, "looked") == (4, {"ids": ("INT64", -1)}, {"OUTPUT__0": ("FP32", 3)})


def test_a_model_of_one_row_or_without_batches_is_told_so(add: Add, repository: Path) -> None:
    code, out, _ = add("one_row.pt", "--input", "x:2")
    refused = add("no_batch.pt", "--input", "x:2")
    assert add("no_batch.pt", "--input", "x:2", "--max-batch-size", "0")[0] == 0

    assert code == 0
    assert "the model takes one row at a time (max_batch_size 1): it raises for 3 rows" in out
    assert tensors(repository, "one_row")[0] == 1
    assert refused[0] == 1
    assert "--max-batch-size 0 says that the model takes no batch dimension" in refused[2]
    assert tensors(repository, "no_batch") == (0, {"x": ("FP32", 2)}, {"OUTPUT__0": ("FP32", 2, 3)})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["sums.pt"], "does not say the shape of what goes in, and forward takes x, ids: say it "
         "with --input x:DIMS --input ids:DIMS"),
        (["sums.pt", "--input", "x:4"], "with --input ids:DIMS"),
        (["safetensors.safetensors"], "with --architecture module:callable"),
        (["state_dict.pt", "--architecture", "doubling:double"], "with --input input:DIMS"),
        (["own"], "with --input NAME:DIMS"),
        (["own", "--input", "x"], "--input 'x': expected NAME:DIMS[:TYPE]"),
        (["channels.pt", "--input", "x:2"], "give another shape of one row with --input"),
        (["onnx.onnx", "--input", "y:2"], "--input y:2:FP32: the file has no 'y', it has x:2:FP32"),
        (["sums.pt", "--input", f"x:{2**31}"], "must be from 1 to 2147483647, or -1 for any"),
        (["sums.pt", "--input", "x:" + "9" * 5000], "must be from 1 to 2147483647"),
        (["."], ".: it holds several models, name one: "),
        (["empty"], "empty: it holds no model"),
        (["https://a/b.pt"], "https://a/b.pt is an address, and Ferry fetches nothing: "),
        (["onnx.onnx", "--name", "a b"], "--name 'a b' must be letters"),
        (["onnx.onnx", "--labels", "none.txt"], "--labels none.txt: no such file"),
        (["onnx.onnx", "--parameter", "x"], "--parameter 'x': expected KEY=VALUE"),
        (["onnx.onnx", "own/../onnx.onnx"], "would both be called 'onnx': give --name"),
        (["onnx.onnx", "--name", "a", "--name", "b"], "--name was given 2 times for 1 files"),
    ],
)  # fmt: skip
def test_what_is_missing_is_asked_for_by_its_option(
    add: Add, repository: Path, arguments: list[str], says: str
) -> None:
    code, _, error = add(*arguments)

    assert code == 1
    assert says in error
    assert error.startswith("ferry: ")
    assert error.count("\n") == 1
    assert not repository.exists()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("page.onnx", b"<!DOCTYPE html><title>Not found</title>", "is an HTML page (Not found)"),
        ("cut.pt", None, "cut.pt: the file is a zip archive that is cut off"),
        ("empty.pt", b"", "is an empty file"),
        ("missing.pt", ..., "missing.pt: no such file"),
        ("lfs.onnx", b"version https://git-lfs.github.com/spec/v1\noid x\n", "git lfs pull"),
    ],
)
def test_what_is_no_model_is_refused_before_anything_is_copied(
    add: Add, files: Path, repository: Path, name: str, content: Any, says: str
) -> None:
    if content is not ...:
        whole = (files / "sums.pt").read_bytes()
        (files / name).write_bytes(whole[: len(whole) // 2] if content is None else content)

    code, _, error = add("onnx.onnx", name)

    assert code == 1
    assert says in error
    assert not repository.exists()


@pytest.mark.parametrize("rows", ["99999999999", "-1", "many"])
def test_a_batch_size_that_no_config_holds_is_refused(
    add: Add, capsys: pytest.CaptureFixture[str], rows: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        add("onnx.onnx", f"--max-batch-size={rows}")

    assert stopped.value.code == 2
    assert f"{rows!r}: expected a number of rows, from 0 to 2147483647" in capsys.readouterr().err


def test_a_file_that_loading_refuses_is_refused_with_its_sentence(
    add: Add, repository: Path
) -> None:
    code, _, error = add("joblib.joblib", "--input", "x:2", "--output", "y:2")

    assert code == 1
    assert "joblib.joblib" in error
    assert "FERRY_ALLOW_PICKLE=1" in error
    assert "/tmp" not in error.replace(str(repository), "")
    assert not repository.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["state_dict.pt", "--architecture", "doubling:double", "--input", "x:2"],
        ["safetensors.safetensors", "--architecture", "doubling:double", "--input", "x:2"],
        ["own", "--input", "x:2"],
    ],
)
def test_code_that_lies_beside_a_file_comes_along(
    add: Add, repository: Path, arguments: list[str]
) -> None:
    code, _, error = add(*arguments, "--name", "mine")

    assert code == 0, error
    code_file = "helper.py" if arguments[0] == "own" else "doubling.py"
    assert (repository / "mine" / "1" / code_file).is_file()
    assert not (repository / "mine" / "1" / code_file).is_symlink()
    assert tensors(repository, "mine")[:2] == (4, {"x": ("FP32", 2)})


def test_a_pickle_says_what_it_is_and_the_code_of_its_classes_comes_along(
    add: Add, files: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (files / "training.py").write_text(PICKLED)
    subprocess.run([sys.executable, "training.py"], cwd=files, check=True, timeout=120)

    refused = add("whole.pt", "--input", "x:2")
    monkeypatch.setenv("FERRY_ALLOW_PICKLE", "1")
    code, _, error = add("whole.pt", "--input", "x:2")
    completed = add("texts.joblib")
    (files / "training.py").unlink()
    alone = add("whole.pt", "--input", "x:2", "--name", "alone")
    asked = add("numbers.joblib")

    assert alone[2].endswith(" or put the .py file that defines it beside whole.pt\n"), alone
    assert asked[2].startswith("ferry: numbers.joblib: the file's LabelEncoder does not answer")
    assert asked[2].endswith(": say --input NAME:DIMS --output NAME:DIMS\n")
    assert refused[0] == 1
    assert "whole.pt: a pickled torch module (class __main__.Mine): " in refused[2]
    assert code == 0, error
    assert (repository / "whole" / "1" / "training.py").is_file()
    assert tensors(repository, "whole")[1:] == ({"x": ("FP32", 2)}, {"OUTPUT__0": ("FP32", 3)})
    assert completed[0] == 0, completed
    assert list(tensors(repository, "texts")[1].values()) == [("BYTES", 1)]


@pytest.mark.parametrize("location", ["large.onnx.data", "parts/w.bin", f"{200 * 'w'}.bin"])
def test_weights_beside_an_onnx_file_come_along(
    add: Add, repository: Path, tmp_path: Path, location: str
) -> None:
    (tmp_path / "parts").mkdir()
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 64]) for name in "xy"]
    weights = numpy_helper.from_array(torch.ones(64, 64).numpy(), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(
        model, tmp_path / "large.onnx", save_as_external_data=True, location=location,
        size_threshold=0,
    )  # fmt: skip

    code, _, error = add(str(tmp_path / "large.onnx"))

    assert code == 0, error
    version = repository / "large" / "1"
    assert (version / location).is_file()
    assert (version / "model.onnx").is_file()

    (tmp_path / location).unlink()
    code, _, error = add(str(tmp_path / "large.onnx"), "--name", "half")

    assert code == 1
    assert error.endswith(f"its weights are in {location}, which is not there: bring both\n")


@pytest.mark.usefixtures("untried")
def test_labels_and_pictures_are_written_into_the_config(
    add: Add, files: Path, repository: Path
) -> None:
    (files / "kinds.txt").write_text("cat\ndog\nfox\n")

    code, out, error = add("channels.pt", "--input", "image:3x8x8", "--labels", "kinds.txt")

    assert code == 0, error
    assert "pixels are divided by 255" in out
    spec = read_config(repository / "channels" / "config.pbtxt", "1").spec
    assert spec.outputs[0].labels == ("cat", "dog", "fox")
    assert spec.image is not None
    assert (spec.image.channels, spec.image.layout) == ("RGB", "NCHW")
    assert spec.image.scale == pytest.approx(1 / 255)


def test_the_next_file_is_the_next_version_if_it_fits_the_config(
    add: Add, files: Path, repository: Path
) -> None:
    assert add("onnx.onnx")[0] == 0
    (repository / "onnx" / "labels.txt").write_text("no\nyes\n")
    config = repository / "onnx" / "config.pbtxt"
    config.write_text(config.read_text() + "# mine\n")

    again = add("onnx.onnx")
    other = add("torch_export.pt2", "--name", "onnx")
    wider = add("onnx.onnx", "--input", "x:3")
    batch = add("onnx.onnx", "--max-batch-size", "9")

    assert again[0] == 0, again
    assert sorted(path.name for path in (repository / "onnx").iterdir()) == [
        "1", "2", "config.pbtxt", "labels.txt",
    ]  # fmt: skip
    assert config.read_text().endswith("# mine\n")
    assert "is a program of torch.export, and the model has the format onnxruntime_onnx" in other[2]
    assert f"--input x:3:FP32, but it is x:2:FP32 in {config}" in wider[2]
    assert f"--max-batch-size 9, but it is 4 in {config}" in batch[2]
    for refused in (other, wider, batch):
        assert "(it would be version 3 of the model 'onnx' that" in refused[2]


@pytest.mark.usefixtures("untried")
def test_several_files_of_one_name_are_versions_in_their_order(add: Add, repository: Path) -> None:
    code, out, error = add(
        "sums.pt", "sums.pt", "--name", "two", "--input", "x:2", "--input", "ids:2"
    )

    assert code == 0, error
    assert f"two: {repository}/two/1 from sums.pt" in out
    assert f"two: {repository}/two/2 from sums.pt" in out


@pytest.mark.usefixtures("untried")
def test_a_name_is_made_valid_and_said(add: Add, files: Path, repository: Path) -> None:
    (files / "my model (2).v1.onnx").write_bytes((files / "onnx.onnx").read_bytes())

    code, out, _ = add("my model (2).v1.onnx")

    assert code == 0
    assert "my model (2).v1.onnx: the model is called 'my_model_2_.v1'" in out
    assert model_names(repository) == ["my_model_2_.v1"]


@pytest.mark.usefixtures("untried")
def test_a_copy_that_fails_leaves_nothing(
    add: Add, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(source: Path, target: Path) -> None:
        target.mkdir()
        (target / "model.onnx").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(staging.shutil, "copytree", half)

    code, _, error = add("onnx.onnx")

    assert code == 1
    assert f"onnx.onnx: not copied to {repository}/onnx/1: " in error
    assert "No space left on device" in error
    assert list(repository.iterdir()) == []


@pytest.mark.usefixtures("untried")
def test_what_a_killed_copy_left_is_removed_by_the_next_but_not_under_another(
    add: Add, repository: Path
) -> None:
    left = repository / ".copying-killed"
    (left / "model").mkdir(parents=True)
    other = os.open(repository, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_SH)

    assert add("onnx.onnx")[0] == 0
    assert left.exists()

    os.close(other)
    assert add("onnx.onnx")[0] == 0
    assert not left.exists()


@pytest.mark.usefixtures("untried")
def test_others_may_read_what_was_added(add: Add, repository: Path) -> None:
    before = os.umask(0o022)
    try:
        assert add("onnx.onnx")[0] == 0
    finally:
        os.umask(before)

    assert stat.S_IMODE((repository / "onnx").stat().st_mode) == 0o755
    assert stat.S_IMODE((repository / "onnx" / "1").stat().st_mode) == 0o755


@contextmanager
def worker(redis_url: str, repository: Path, mode: str) -> Iterator[Registry]:
    """Run a worker over an empty repository in a control mode."""
    repository.mkdir()
    settings = Settings(
        redis_url=redis_url, key_prefix=f"add-{mode}", models=str(repository),
        model_control_mode=mode, poll_seconds=0.2,
    )  # fmt: skip
    with running_worker(settings):
        yield Registry(connect(redis_url), settings.key_prefix)


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("explicit", "requests go to version 1: all"),
        ("poll", "takes it up by itself: its control mode is poll"),
        ("none", "once it is started again: its control mode is none"),
    ],
)
def test_a_ferry_that_runs_takes_the_file_up_as_its_mode_says(
    add: Add,
    repository: Path,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    says: str,
) -> None:
    with worker(redis_url, repository, mode) as registry:
        monkeypatch.setenv("REDIS_URL", redis_url)
        monkeypatch.setenv("FERRY_KEY_PREFIX", f"add-{mode}")

        code, out, error = add("onnx.onnx")

        assert code == 0, error
        assert says in out
        if mode != "none":
            wait_until(lambda: registry.snapshot().is_ready("onnx"), 30, "it is served")
