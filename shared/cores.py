"""Counts the cores and the memory that a process may use: by affinity, and by control groups."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def default_cores() -> int:
    """Return how many cores this process may use, a part of one counted whole."""
    return math.ceil(min(len(os.sched_getaffinity(0)), quota_cores(CGROUPS, MEMBERSHIP)))


def quota_cores(cgroups: Path, membership: Path) -> float:
    """Return the cores' worth of time that control groups allow, infinity without a limit.

    A container's limit (`docker run --cpus 2`, Kubernetes' `limits.cpu`) is one: it sees all cores
    of its machine, and whoever starts a thread for each is held up most of the time. The narrowest
    group from ours up to the root counts. Source: the kernel's cgroup-v2.rst and sched-bwc.rst.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return math.inf
    quotas = [_quota(group) for line in lines for group in _groups(cgroups, line)]
    return min(quotas, default=math.inf)


def default_memory_bytes() -> int:
    """Return how much memory this process may use, of its machine's or its container's."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(min(machine, limit_bytes(CGROUPS, MEMBERSHIP)))


def limit_bytes(cgroups: Path, membership: Path) -> float:
    """Return the memory that control groups allow, infinity without a limit; as `quota_cores`."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return math.inf
    groups = [group for line in lines for group in _groups(cgroups, line, "memory")]
    return min([_limit(group) for group in groups], default=math.inf)


def _limit(group: Path) -> float:
    for name in ("memory.max", "memory.limit_in_bytes"):
        try:
            return int((group / name).read_text()) or math.inf
        except (OSError, ValueError):  # no such group here, or `max`
            continue
    return math.inf


def _groups(cgroups: Path, line: str, controller: str = "cpu") -> Iterator[Path]:
    """Yield the directories of a line `number:controllers:path`, up to the root."""
    _, controllers, path = line.split(":", 2)
    if controllers and controller not in controllers.split(","):
        return
    root = cgroups / controller if controllers else cgroups
    inside = PurePosixPath(path.lstrip("/"))
    yield from (root / each for each in (inside, *inside.parents))


def _quota(group: Path) -> float:
    """Return a group's own limit: version 2 has one file for it, version 1 two."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text()
            period = (group / "cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except (OSError, ValueError):  # no such group here, or `max`
        return math.inf
