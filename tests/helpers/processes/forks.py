"""Our worker's processes as forks of one that has torch already, which takes seconds to import.

    python forks.py

reads jobs from its standard input, each a line of JSON, and forks for each a keeper, which forks
the process itself: it tells its id and its exit code.
"""

from __future__ import annotations

import atexit
import json
import multiprocessing.util
import os
import runpy
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[3]
REAL_RUN, REAL_SPAWN = subprocess.run, multiprocessing.util.spawnv_passfds
START_SECONDS = 120.0


class Forked:
    """A process that was forked, with what tests ask of `subprocess.Popen`."""

    def __init__(self, reports: int) -> None:
        self.returncode: int | None = None
        self._reports, self._said = reports, b""
        pid = self._number(START_SECONDS)
        assert pid is not None, "it starts within its time"
        self.pid = pid

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._number(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self.returncode = self._number(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("a fork", timeout or 0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __del__(self) -> None:
        os.close(self._reports)

    def _number(self, timeout: float | None) -> int | None:
        if b"\n" not in self._said:
            if not select.select([self._reports], [], [], timeout)[0]:
                return None
            self._said += os.read(self._reports, 100)
        line, _, self._said = self._said.partition(b"\n")
        return int(line)


class Forks:
    """The process that is forked. It starts with its first job, and ends with this one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(
        self,
        arguments: Sequence[str],
        environ: Mapping[str, str],
        directory: Path,
        *files: Path | None,
    ) -> Forked:
        """Start `python -m ARGUMENTS`; `files` are its standard ones, ours where there is none."""
        with TemporaryDirectory() as scratch:
            reports = Path(scratch) / "reports"
            os.mkfifo(reports)
            reader = os.open(reports, os.O_RDWR)
            job = {
                "arguments": [*arguments], "environ": {**environ}, "directory": str(directory),
                "files": [file and str(file) for file in files], "reports": str(reports),
            }  # fmt: skip
            process = self._started()
            assert process.stdin is not None, "started with a pipe"
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
            return Forked(reader)

    def run(self, command: Any, **options: Any) -> subprocess.CompletedProcess[Any]:
        """Take the place of `subprocess.run` for `python -m worker...`; run anything else by it."""
        start = [sys.executable, "-m"]
        if list(command[:2]) != start or not str(command[2]).startswith("worker."):
            return REAL_RUN(command, **options)
        with TemporaryDirectory() as scratch:
            given, out, errors = (Path(scratch) / name for name in ("in", "out", "err"))
            given.write_bytes(options.get("input", b""))
            forked = self.start(command[2:], options["env"], Path.cwd(), given, out, errors)
            code = forked.wait(options["timeout"])
            found = out.read_bytes(), errors.read_bytes()
            return subprocess.CompletedProcess(command, code, *found)

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()
            self._process = None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, __file__],
                # What `python -m worker` sets for the processes that import torch after it.
                env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"},
                stdin=subprocess.PIPE,
            )
            atexit.register(self.close)
        return self._process


FORKS = Forks()


def main() -> None:
    """Fork for one job after the other, until there are no more."""
    import sklearn.compose  # noqa: F401, PLC0415  what jobs import takes long

    import worker.instance.process  # noqa: PLC0415
    import worker.supervisor.supervisor  # noqa: F401, PLC0415

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    for line in sys.stdin:
        job = json.loads(line)
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            reports = os.open(job.pop("reports"), os.O_WRONLY)
            if (child := os.fork()) == 0:
                os.close(reports)
                _become(**job)
            os.write(reports, b"%d\n" % child)
            os.write(reports, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            os._exit(0)


def _become(
    arguments: list[str], environ: dict[str, str], directory: str, files: list[str | None]
) -> NoReturn:
    """Be the command, in its directory and environment, to its end."""
    for number, file in enumerate(files):
        if file is not None:
            os.dup2(os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115  the one before has read ahead
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environ)
    given = environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[0:1] = [directory, *filter(None, given)]
    sys.argv = arguments
    multiprocessing.util.spawnv_passfds = _spawn
    code: Any = 1
    try:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(code)  # the libraries' own ends would wait for threads that were not forked


def _spawn(program: bytes, arguments: list[str], descriptors: list[int]) -> int:
    """Spawn a process as multiprocessing does, but a forkserver as a fork, which has torch."""
    if "multiprocessing.forkserver" not in arguments[-1]:
        return REAL_SPAWN(program, arguments, descriptors)
    child = os.fork()
    if child != 0:
        return child
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/proc/self/fd"):
        # subtle: not closed, as objects that we inherit may close their number once more.
        if (
            int(name) > 2
            and int(name) not in descriptors
            and os.path.exists(f"/proc/self/fd/{name}")
        ):
            os.dup2(nothing, int(name))
    try:
        exec(arguments[-1], {})
    finally:
        os._exit(1)


if __name__ == "__main__":
    main()
