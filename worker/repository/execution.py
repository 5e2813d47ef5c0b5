"""How a model is executed, where its config says more than its file: `parameters` of Ferry's own.

    precision             fp32, tf32, fp16 or bf16: what its module computes in
    memory_layout         contiguous or channels_last, of pictures and convolutions
    batch_buckets         the batch sizes that it sees: smaller batches are filled up with copies
    execution_tolerance   how far answers may be from those without all this, see `ExecutionPolicy`

`worker.instance.execution` follows it, and compares before a client's request comes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from worker.repository.config.parameters import number, numbers

PRECISION, LAYOUT, BUCKETS = "precision", "memory_layout", "batch_buckets"
TOLERANCE = "execution_tolerance"
PRECISIONS = {"": 1e-3, "fp32": 1e-3, "tf32": 1e-2, "fp16": 1e-2, "bf16": 5e-2}
"""How far answers in each may be off: TF32 and FP16 have 10 bits behind the point, BF16 has 7."""
LAYOUTS = ("contiguous", "channels_last")
MODULES, CODE = "pytorch", "python"


class ExecutionPolicy(NamedTuple):
    """What a config asks for; empty fields leave a model as its file has it.

    `tolerance` bounds the largest difference of an output, as a share of its largest number; of
    outputs that are no floating point numbers, the share of elements that differ.
    """

    precision: str = ""
    layout: str = ""
    buckets: tuple[int, ...] = ()
    tolerance: float = PRECISIONS[""]

    @property
    def of_module(self) -> bool:
        """Tell whether the backend has to do something about it."""
        return bool(self.precision or self.layout)

    def __str__(self) -> str:
        """Return it as a config says it."""
        buckets = ",".join(map(str, self.buckets))
        said = {PRECISION: self.precision, LAYOUT: self.layout, BUCKETS: buckets}
        return ", ".join(f"{name} {value}" for name, value in said.items() if value)


def execution_policy(
    backend: str, parameters: Mapping[str, str], max_batch_size: int
) -> ExecutionPolicy:
    """Return what `parameters` say; `backend` is Triton's word. Raises ValueError naming one."""
    precision, layout = parameters.get(PRECISION, ""), parameters.get(LAYOUT, "")
    if precision not in PRECISIONS:
        known = ", ".join(filter(None, PRECISIONS))
        raise ValueError(f"{PRECISION} {precision!r}: expected one of {known}")
    if layout not in ("", *LAYOUTS):
        raise ValueError(f"{LAYOUT} {layout!r}: expected {' or '.join(LAYOUTS)}")
    for name, value in ((PRECISION, precision), (LAYOUT, layout)):
        if value and backend != MODULES:
            raise ValueError(f"{name} {value!r} is for modules of torch, this is one of {backend}")
    tolerance = number(parameters, TOLERANCE, str(PRECISIONS[precision]), float)
    if not 0 <= tolerance <= 1:
        raise ValueError(f"{TOLERANCE} {tolerance}: expected a number from 0 to 1")
    return ExecutionPolicy(
        precision, layout, _buckets(backend, parameters, max_batch_size), tolerance
    )


def _buckets(backend: str, parameters: Mapping[str, str], max_batch_size: int) -> tuple[int, ...]:
    """Return the batch sizes in order, the largest one among them."""
    if BUCKETS not in parameters:
        return ()
    text = parameters[BUCKETS]
    if max_batch_size < 1 or backend == CODE:
        reason = "it sees each request" if backend == CODE else "max_batch_size is 0"
        raise ValueError(f"{BUCKETS} {text!r}: the model has no batches to fill up, {reason}")
    sizes = numbers(parameters, BUCKETS, "", int)
    if min(sizes) < 1 or max(sizes) > max_batch_size:
        raise ValueError(f"{BUCKETS} {text!r}: expected sizes from 1 to {max_batch_size}")
    return tuple(sorted({*sizes, max_batch_size}))
