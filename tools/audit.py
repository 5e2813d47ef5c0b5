"""Asks an index for known vulnerabilities of the locked packages: `make audit`.

pip-audit does, in an environment of its own. Ends with 1 where it finds some; where it cannot be
had, or its index does not answer in time, that is said in a sentence, and nothing was looked at.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
AUDITOR = "pip-audit==2.10.1"
INSTALL_SECONDS, AUDIT_SECONDS = 90, 60
HOME = ROOT / ".venv" / "audit"


def main(auditor: Path = HOME / "bin" / "pip-audit") -> int:
    """Print what is found; 1 where something is."""
    if not auditor.exists() and _run(["-m", "venv", str(HOME)], INSTALL_SECONDS) is not None:
        _run([str(HOME / "bin/pip"), "install", "--quiet", AUDITOR], INSTALL_SECONDS)
    files = sorted((ROOT / "requirements").glob("*.txt"))
    asked = [each for file in files for each in ("--requirement", str(file))]
    options = ["--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
    said = _run([str(auditor), *options, *asked], AUDIT_SECONDS) if auditor.exists() else None
    try:
        found = findings(json.loads(said or ""))
    except (ValueError, KeyError, TypeError):
        print("audit: no index of vulnerabilities answers here, nothing was looked at")
        return 0
    print("\n".join(found) or f"audit: nothing known of what {len(files)} locks name")
    return 1 if found else 0


def findings(report: dict[str, Any]) -> list[str]:
    """Return a line for each vulnerability in pip-audit's report; KeyError for another document."""
    return sorted(
        {
            f"{each['name']} {each['version']}: {one['id']}, mended in "
            f"{', '.join(one['fix_versions']) or 'no version'}"
            for each in report["dependencies"]
            for one in each.get("vulns", ())
        }
    )


def _run(command: Sequence[str], seconds: float) -> str | None:
    """Return what a program prints, None where it cannot be run to its end in time."""
    if command[0].startswith("-"):
        command = [sys.executable, *command]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, check=False, cwd=ROOT
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
