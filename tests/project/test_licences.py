"""The licences of what we lock, and what is said of its vulnerabilities."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools import audit, licences


@pytest.mark.parametrize(
    "licence",
    [
        "MIT", "MIT License", "Apache-2.0", "Apache Software License", "3-Clause BSD License",
        "BSD-3-Clause AND 0BSD AND MIT AND Zlib AND CC0-1.0", "MPL-2.0 AND (Apache-2.0 OR MIT)",
        "GPL-3.0-only OR MIT", "Mozilla Public License 2.0 (MPL 2.0)", "MIT style", "PSF-2.0",
    ],
)  # fmt: skip
def test_what_asks_for_a_notice_is_accepted(licence: str) -> None:
    assert licences.is_accepted(licence)


@pytest.mark.parametrize(
    "licence",
    [
        "", "UNKNOWN", "GPL-3.0-only", "AGPL-3.0-or-later", "MIT AND GPL-2.0-only", "LGPL-2.1",
        "MIT License; GNU General Public License v3 (GPLv3)", "Proprietary", "GPL-2.0 OR AGPL-3.0",
        "Apache-2.0 WITH Commons-Clause", "SSPL-1.0", "BUSL-1.1", "MITX",
    ],
)  # fmt: skip
def test_what_asks_for_more_or_says_nothing_is_not(licence: str) -> None:
    assert not licences.is_accepted(licence)


def test_every_locked_package_that_is_here_is_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    assert licences.main() == 0
    assert "MIT" in capsys.readouterr().out


def auditor(directory: Path, script: str) -> Path:
    file = directory / "pip-audit"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return file


def test_findings_are_printed_and_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {"id": "PYSEC-1", "fix_versions": ["2.0"]}
    packages = [
        {"name": "good", "version": "1", "vulns": []},
        {"name": "bad", "version": "1", "vulns": [found]},
    ]
    report = json.dumps({"dependencies": packages, "fixes": []})

    assert audit.main(auditor(tmp_path, f"echo '{report}'; exit 1")) == 1
    assert capsys.readouterr().out == "bad 1: PYSEC-1, mended in 2.0\n"


@pytest.mark.parametrize("script", ["exit 1", "echo '{}'", "echo no connection; exit 1"])
def test_an_index_that_does_not_answer_is_said_and_fails_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], script: str
) -> None:
    assert audit.main(auditor(tmp_path, script)) == 0
    assert "nothing was looked at" in capsys.readouterr().out
