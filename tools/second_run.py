"""Runs what failed in a whole run once more, alone: `python -m tools.second_run CODE`, pytest's.

Hundreds of processes run side by side on few cores in a whole run, and a wait can end there too
early. What fails alone as well has failed, and what might lose a request is asked once only.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FAILED = Path(".pytest_cache/v/cache/lastfailed")
ASKED_ONCE = ("crash", "queue_model", "cache_model", "test_bulk", "test_mishaps", "failover")
"""Parts of the names of files whose tests say that something was lost, or came twice."""
TESTS_FAILED = 1
MOST = 10
"""More of them are no accident."""


def main(code: int) -> int:
    """Return 0 if all that failed passes now, else how this run ended or the first."""
    if code != TESTS_FAILED:
        return code
    failed = sorted(json.loads(FAILED.read_text())) if FAILED.exists() else []
    grave = [test for test in failed if any(part in test for part in ASKED_ONCE)]
    if not failed:  # xdist runs again what stood in a process that died
        print("second run: none, a test process died, and what it ran passed in another one")
        return 0
    if grave or len(failed) > MOST:
        why = f"{grave[0]} is asked once only" if grave else f"{len(failed)} failed"
        print(f"second run: none, {why}", file=sys.stderr)
        return 1
    print(f"second run: {len(failed)} failed beside others, each is run alone now", flush=True)
    command = [sys.executable, "-m", "pytest", "--last-failed", "-rA", "--tb=short"]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
