"""A command that takes long shows a bar on a terminal, and nothing where its output is piped."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ferry.cli import _parser
from ferry.commands import export, optimise, progress_bar, verify
from ferry.commands.add import Given
from shared.errors import BadModel
from worker.optimise.tuning import optimise as tuning

ROOT = Path(__file__).resolve().parents[2]
COMMAND = """
import sys
from ferry.commands.progress_bar import progress_bar
from worker.optimise.quiet import quiet
with progress_bar("tiny") as tell:
    tell(None, "verifying")
    with quiet():
        tell(0.25, "row [1] of 4")
        print("a library says")
        print("it also says", file=sys.stderr)
    print("a line of ours")
assert ("rich" in sys.modules) is sys.stderr.isatty()
"""


def test_on_a_terminal_it_shows_also_while_libraries_are_kept_quiet() -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", COMMAND]
    environ = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=theirs
    ) as process:
        os.close(theirs)
        shown = read_terminal(ours)
        assert process.stdout is not None
        said = process.stdout.read()

    assert process.returncode == 0, shown
    assert "tiny" in shown
    assert "25%" in shown
    assert "row [1] of 4" in shown
    assert "says" not in shown
    assert said == b"a line of ours\n", "what is piped has the lines alone"


def test_where_it_is_piped_nothing_shows() -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMMAND], cwd=ROOT, capture_output=True, check=True, timeout=60
    )

    assert (done.stdout, done.stderr) == (b"a line of ours\n", b"")


def read_terminal(descriptor: int) -> str:
    """Return all that is written to a terminal, until its writers have ended."""
    found = b""
    while True:
        try:
            found += os.read(descriptor, 65536)
        except OSError:  # as Linux ends it
            os.close(descriptor)
            return found.decode()


class Bar:
    """A bar that says whether it is shown, and what it was told."""

    def __init__(self) -> None:
        self.is_shown, self.steps = False, list[str]()

    @contextmanager
    def __call__(self, what: str) -> Iterator[progress_bar.Tell]:
        self.is_shown = True
        yield lambda _share, step: self.steps.append(f"{what}: {step}")
        self.is_shown = False


def run_verify() -> int:
    return verify.run_verify(os.environ, verify.VerifyOrder("m"), as_json=False)


def run_edge() -> int:
    return verify.run_edge(os.environ, verify.EdgeOrder("m", "ort"))


def run_export() -> int:
    given = Given([])
    return export.run_export(os.environ, export.Exported("a:b", ["onnx"], "m"), given)


def run_optimise() -> int:
    options = _parser().parse_args(["optimise", "m"])
    return int(options.run(options))


@pytest.mark.parametrize(
    ("module", "work", "run", "step"),
    [
        (verify, "verify", run_verify, "verifying"),
        (verify, "make_bundle", run_edge, "making files"),
        (export, "export", run_export, "exporting"),
        (tuning, "optimise", run_optimise, "measuring 2 models"),
    ],
)
def test_the_commands_show_it_while_they_work(
    monkeypatch: pytest.MonkeyPatch, module: Any, work: str, run: Callable[[], int], step: str
) -> None:
    bar = Bar()
    shown_by = optimise if module is tuning else module
    monkeypatch.setattr(shown_by, "progress_bar", bar)

    def worked(*arguments: Any, **_: object) -> None:
        assert bar.is_shown
        if module is tuning:
            arguments[3]("measuring 2 models: for 600 s at most")
        raise BadModel("that is enough")

    monkeypatch.setattr(module, work, worked)
    with pytest.raises(BadModel, match="that is enough"):
        run()

    assert bar.steps == [f"m: {step}"]
