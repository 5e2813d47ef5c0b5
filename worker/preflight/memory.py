"""A GPU's memory for one instance: whether it is enough to begin with, its limit, what it took."""

from __future__ import annotations

from shared.errors import BadModel
from worker.job import InstanceJob
from worker.repository.config.parameters import MAX_GPU_MEMORY, number

MEBIBYTE = 2**20
NO_CONTEXT = {
    "busy or unavailable": "lets no further process in: its compute mode is EXCLUSIVE_PROCESS or "
    "PROHIBITED, and another instance or program may hold it",
    "out of memory": "has no memory left even to begin with, which takes some 600 MiB: unload "
    "another model",
}
"""CUDA's words for a device that takes no new process; they outlast the shortage in this one."""


def admit(job: InstanceJob) -> int:
    """Return the free bytes of the instance's GPU, and limit torch there if the config says so.

    Raises BadModel where the model cannot fit: where its file, or what the last instance of the
    same version took, is larger than what is free. 0 for an instance on the CPU.
    """
    if not job.placement.uuid:
        return 0
    import torch  # noqa: PLC0415  the supervisor imports this room too

    try:
        free, total = torch.cuda.mem_get_info()
    except RuntimeError as error:
        for sign, sentence in NO_CONTEXT.items():
            if sign in str(error):
                raise BadModel(f"GPU {job.placement.uuid} {sentence}") from error
        raise
    limit = number(job.spec.parameters, MAX_GPU_MEMORY, "0", int)
    needed, what = max(
        (job.file.stat().st_size, "its file is"), (job.memory_bytes, "its last instance took")
    )
    if limit and needed > limit:
        raise BadModel(f"{MAX_GPU_MEMORY} {limit}: the model does not fit, {what} {_size(needed)}")
    if needed > free:
        raise BadModel(
            f"GPU {job.placement.uuid} has {_size(free)} of {_size(total)} free, and {what} "
            f"{_size(needed)}: unload another model, or have versions take turns "
            "(parameters { swap: stop_first })"
        )
    if limit:
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total))
    return free


def taken(free_before: int) -> int:
    """Return what a warm model holds of its GPU, which had `free_before` before it was loaded.

    Torch knows what it holds itself; of other frameworks it is what is missing since, whoever else
    took it.
    """
    import torch  # noqa: PLC0415

    if not free_before:
        return 0
    held = torch.cuda.max_memory_reserved()
    return held or max(0, free_before - torch.cuda.mem_get_info()[0])


def _size(count: int) -> str:
    return f"{count / MEBIBYTE:,.0f} MiB"
