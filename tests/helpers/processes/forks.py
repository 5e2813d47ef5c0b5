"""Our worker's commands run as forks of a process that has torch already, which takes it seconds.

    python forks.py

reads jobs from its standard input, each a line of JSON, and writes the exit code of each.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import traceback
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[3]
REAL_RUN = subprocess.run


class Forks:
    """What takes the place of `subprocess.run`; its process starts when it is first asked."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, command: Any, **options: Any) -> subprocess.CompletedProcess[Any]:
        """Run `python -m worker...` with its environment and input; anything else as it is."""
        start = [sys.executable, "-m"]
        if list(command[:2]) != start or not str(command[2]).startswith("worker."):
            return REAL_RUN(command, **options)
        with TemporaryDirectory() as directory:
            files = [Path(directory) / name for name in ("in", "out", "err")]
            files[0].write_bytes(options.get("input", b""))
            code = self._ask(command[2:], options["env"], files)
            found = (files[1].read_bytes(), files[2].read_bytes())
            return subprocess.CompletedProcess(command, code, *found)

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()

    def _ask(self, arguments: list[str], environ: dict[str, str], files: list[Path]) -> int:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, __file__],
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        job = {
            "arguments": arguments, "environ": environ, "directory": os.getcwd(),
            "files": [str(file) for file in files],
        }  # fmt: skip
        self._process.stdin.write(json.dumps(job).encode() + b"\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def main() -> None:
    """Run one job after the other, until there are no more."""
    import sklearn.compose  # noqa: F401, PLC0415

    import worker.backends.loading  # noqa: PLC0415  what the jobs import takes long
    import worker.instance.process  # noqa: F401, PLC0415

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _become(**json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _become(
    arguments: list[str], environ: dict[str, str], directory: str, files: list[str]
) -> NoReturn:
    """Be the command, in its directory and environment."""
    for number, file in enumerate(files):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115  the one before has read ahead
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environ)
    given = environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[0:1] = [directory, *filter(None, given)]
    sys.argv = arguments
    code: Any = 0
    try:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
