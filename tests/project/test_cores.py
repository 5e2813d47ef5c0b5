"""Cores are counted as a container's limits leave them, in either version of control groups."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from shared import cores
from shared.cores import default_cores, quota_cores
from shared.settings import Settings

V1 = "11:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n3:cpuset:/docker/abc\n"
HYBRID = "1:cpu:/a/b\n0::/a/b\n"
LIMIT = {"cpu.max": "200000 100000\n"}
V1_LIMIT = {"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}


def write(directory: Path, membership: str, files: dict[str, str]) -> tuple[Path, Path]:
    (directory / "own").write_text(membership)
    for name, content in files.items():
        path = directory / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return directory / "cgroup", directory / "own"


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/\n", LIMIT, 2.0),
        ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/\n", {}, math.inf),
        ("", LIMIT, math.inf),
        ("0::/pod/c\n", {"pod/c/cpu.max": "max 100000\n", "pod/cpu.max": "50000 100000"}, 0.5),
        ("0::/pod/c\n", {"pod/c/cpu.max": "30000 10000", "pod/cpu.max": "8000 1000"}, 3.0),
        ("0::/not/seen/here\n", LIMIT, 2.0),
        (V1, V1_LIMIT, 1.5),
        (V1, V1_LIMIT | {"cpu/cpu.cfs_quota_us": "-1\n"}, math.inf),
        (V1, {f"cpu/docker/abc/{name[4:]}": content for name, content in V1_LIMIT.items()}, 1.5),
        ("3:cpuset:/\n2:cpuacct:/\n", V1_LIMIT, math.inf),
        (HYBRID, {f"cpu/a/{name[4:]}": content for name, content in V1_LIMIT.items()}, 1.5),
        ("0::/\n", {"cpu.max": "torn"}, math.inf),
    ],
)
def test_the_narrowest_limit_counts(
    tmp_path: Path, membership: str, files: dict[str, str], expected: float
) -> None:
    assert quota_cores(*write(tmp_path, membership, files)) == expected


@pytest.mark.parametrize(
    ("quota", "expected"), [("max", 8), ("1600000", 8), ("250000", 3), ("20000", 1)]
)
def test_cores_follow_the_limit_within_the_affinity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, expected: int
) -> None:
    groups, own = write(tmp_path, "0::/\n", {"cpu.max": f"{quota} 100000\n"})
    monkeypatch.setattr(cores, "CGROUPS", groups)
    monkeypatch.setattr(cores, "MEMBERSHIP", own)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))

    assert default_cores() == expected
    assert Settings().api_process_count == max(1, expected // 2)


def test_there_is_a_core_where_nothing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "MEMBERSHIP", tmp_path / "absent")

    assert default_cores() == len(os.sched_getaffinity(0))
