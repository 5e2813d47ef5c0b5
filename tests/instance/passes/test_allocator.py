"""What a pass on the CPU is done with stays in the process: the kernel gives no page twice."""

from __future__ import annotations

import subprocess
import sys

import pytest

PASSES = """
import resource
import torch
from worker.instance.passes.allocator import keep_memory

{}
for _ in range(30):
    torch.ones(16 * 2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    torch.ones(16 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 4 * 16384
"""Of four tensors of 64 MiB."""


@pytest.mark.parametrize(
    ("first", "least", "most"), [("keep_memory()", 0, PAGES // 100), ("", PAGES // 2, 2 * PAGES)]
)
def test_large_tensors_take_the_pages_of_those_before(first: str, least: int, most: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PASSES.format(first)], capture_output=True, text=True, check=True
    )

    assert least <= int(done.stdout) <= most
