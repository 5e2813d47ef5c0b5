"""What malloc does with the memory of passes and batches, in a process that runs a model."""

from __future__ import annotations

import ctypes

TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8
"""The numbers by which `mallopt` (malloc.h) knows them."""


def keep_memory() -> None:
    """Have memory that a pass on the CPU is done with stay for the next one.

    fast: malloc takes each large tensor from the kernel anew, which fills it with zeros page by
    page: 4 to 11 ms of system time for a picture of `resnet18`, of 45 to 55 in all (2026-11-30).
    What stays is as much as the largest batch takes. It takes a few passes until all fits.
    """
    malloc = ctypes.CDLL(None)
    malloc.mallopt(MMAP_MAX, 0)
    malloc.mallopt(TRIM_THRESHOLD, -1)


def share_memory() -> None:
    """Have all threads take their memory from one place.

    fast: a second thread's own arena gives each batch's memory back, and takes it page by page.
    """
    ctypes.CDLL(None).mallopt(ARENA_MAX, 1)
