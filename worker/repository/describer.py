"""Describes model files in another process: a damaged file can then do no harm to who asks.

    python -m worker.repository.describer

reads paths from its standard input, each a line of JSON, and writes a line for each: a Description
as JSON, {"error": why there is none} or {"ended": the exit code of who read the file}. It imports a
framework once, and reads each file in a fork of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from contextvars import ContextVar
from pathlib import Path

from shared.errors import text_of
from worker.repository.config.description import Described, Description, import_framework, read

LONGEST_SECONDS = 300


class Describer:
    """The other process, started with the first file; for one thread at a time."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._process: subprocess.Popen[bytes] | None = None

    def describe(self, file: Path) -> Description:
        """Read a file; raises ValueError saying why it tells nothing."""
        answer = json.loads(self._ask(file) or json.dumps({"ended": self._exit_code()}))
        if answer.get("ended") == -signal.SIGALRM:
            raise ValueError(f"{file} was not read within {LONGEST_SECONDS} s")
        if "ended" in answer:
            code = answer["ended"]
            raise ValueError(f"{file}: the process that read it ended with exit code {code}")
        if "error" in answer:
            raise ValueError(f"{file}: {answer['error']}")
        inputs, outputs = (
            [Described(*each) for each in answer[key]] for key in ("inputs", "outputs")
        )
        return Description(inputs, outputs, tuple(answer["rows"]) if answer["rows"] else None)

    def close(self) -> None:
        """End the process; the next file starts another."""
        if self._process is not None:
            self._process.communicate()
            self._process = None

    def _ask(self, file: Path) -> bytes:
        """Return the process's answer, empty when it ended instead."""
        if self._process is None:
            self._process = _started()
        assert self._process.stdin is not None, "started with pipes"
        assert self._process.stdout is not None, "started with pipes"
        try:
            # subtle: nothing is left in a buffer, which would raise again when it is closed.
            os.write(self._process.stdin.fileno(), json.dumps(str(file)).encode() + b"\n")
        except BrokenPipeError:
            return b""
        return self._process.stdout.readline()

    def _exit_code(self) -> int:
        assert self._process is not None, "it was asked before"
        process, self._process = self._process, None
        process.communicate()
        return process.returncode


def _started() -> subprocess.Popen[bytes]:
    root = str(Path(__file__).resolve().parents[2])
    return subprocess.Popen(
        [sys.executable, "-m", "worker.repository.describer"],
        env=os.environ | {"PYTHONPATH": root},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


_SHARED: ContextVar[Describer | None] = ContextVar("describer", default=None)


@contextmanager
def describing_by(describer: Describer) -> Iterator[None]:
    """Have every `describe` within the block ask this describer."""
    before = _SHARED.set(describer)
    try:
        yield
    finally:
        _SHARED.reset(before)


def describe(file: Path) -> Description:
    """Read a file, in a process of its own or by a shared describer; raises ValueError."""
    shared = _SHARED.get()
    if shared is not None:
        return shared.describe(file)
    with closing(Describer()) as alone:
        return alone.describe(file)


def main() -> None:
    """Answer one line after the other, until there are no more."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a framework prints is no answer
    for line in sys.stdin:
        file = Path(json.loads(line))
        import_framework(file)
        print(_in_a_fork(file), file=answers, flush=True)


def _in_a_fork(file: Path) -> str:
    """Return the answer to one file, or how the process ended that was to give it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(LONGEST_SECONDS)
        with os.fdopen(writer, "w") as answer:
            answer.write(_answer(file))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    _, status = os.waitpid(child, 0)
    return text or json.dumps({"ended": os.waitstatus_to_exitcode(status)})


def _answer(file: Path) -> str:
    try:
        return json.dumps(read(file)._asdict())
    except Exception as error:  # a border: whatever the file does to its reader is the answer
        said = text_of(error).strip() or type(error).__name__
        return json.dumps({"error": said.splitlines()[0]})


if __name__ == "__main__":
    main()
