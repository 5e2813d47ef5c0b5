"""Lifts the limit on open files, of which every connection is one."""

from __future__ import annotations

import resource

ENOUGH = 131_072
"""No process needs more; some programs count through all that are allowed."""


def lift_open_files() -> int:
    """Raise this process's limit, and that of what it starts, as far as it may; return it.

    Shells and systemd allow 1024 at first, for programs that use select(2), and more on request.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return ENOUGH if soft == resource.RLIM_INFINITY else soft
