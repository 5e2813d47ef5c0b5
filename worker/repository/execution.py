"""How a model is executed, where its config says more than its file: `parameters` of Ferry's own.

    precision             fp32, tf32, fp16 or bf16: what its module computes in
    memory_layout         contiguous or channels_last, of pictures and convolutions
    torch_freeze          true: TorchScript's weights become constants, and its layers are joined
    torch_compile         true: torch compiles the module at its first passes
    cuda_graphs           true: a pass is captured for each size of its inputs, and replayed
    batch_buckets         the batch sizes that it sees: smaller batches are filled up with copies
    length_buckets        the lengths that it sees of ragged inputs: shorter rows are padded
    execution_tolerance   how far answers may be from those without all this, see `ExecutionPolicy`

`worker.instance.execution` follows it, and compares before a client's request comes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from shared.model_spec import TensorSpec
from worker.repository.config.parameters import number, numbers

PRECISION, LAYOUT, BUCKETS = "precision", "memory_layout", "batch_buckets"
FROZEN, COMPILED, GRAPHS = "torch_freeze", "torch_compile", "cuda_graphs"
LENGTH_BUCKETS, MOST_LENGTHS = "length_buckets", 16
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
    lengths: tuple[int, ...] = ()
    tolerance: float = PRECISIONS[""]
    is_compiled: bool = False
    has_graphs: bool = False
    is_frozen: bool = False

    @property
    def of_module(self) -> bool:
        """Tell whether the backend has to do something about it."""
        flags = self.is_frozen or self.is_compiled or self.has_graphs
        return bool(self.precision or self.layout or flags)

    def __str__(self) -> str:
        """Return it as a config says it."""
        buckets, lengths = (",".join(map(str, each)) for each in (self.buckets, self.lengths))
        said = {
            PRECISION: self.precision, LAYOUT: self.layout,
            FROZEN: "true" if self.is_frozen else "",
            COMPILED: "true" if self.is_compiled else "", GRAPHS: "true" if self.has_graphs else "",
            BUCKETS: buckets, LENGTH_BUCKETS: lengths,
        }  # fmt: skip
        return ", ".join(f"{name} {value}" for name, value in said.items() if value)


def execution_policy(
    backend: str,
    parameters: Mapping[str, str],
    max_batch_size: int,
    inputs: Sequence[TensorSpec] = (),
) -> ExecutionPolicy:
    """Return what `parameters` say of a model with these inputs; `backend` is Triton's word.

    Raises ValueError naming one.
    """
    precision, layout = parameters.get(PRECISION, ""), parameters.get(LAYOUT, "")
    if precision not in PRECISIONS:
        known = ", ".join(filter(None, PRECISIONS))
        raise ValueError(f"{PRECISION} {precision!r}: expected one of {known}")
    if layout not in ("", *LAYOUTS):
        raise ValueError(f"{LAYOUT} {layout!r}: expected {' or '.join(LAYOUTS)}")
    flags = {name: _flag(parameters, name) for name in (FROZEN, COMPILED, GRAPHS)}
    for name in (PRECISION, LAYOUT, *flags):
        value = parameters.get(name, "")
        if value and backend != MODULES:
            raise ValueError(f"{name} {value!r} is for modules of torch, this is one of {backend}")
    tolerance = number(parameters, TOLERANCE, str(PRECISIONS[precision]), float)
    if not 0 <= tolerance <= 1:
        raise ValueError(f"{TOLERANCE} {tolerance}: expected a number from 0 to 1")
    buckets = _buckets(backend, parameters, max_batch_size)
    lengths = _lengths(backend, parameters, max_batch_size, inputs)
    return ExecutionPolicy(
        precision, layout, buckets, lengths, tolerance,
        flags[COMPILED], flags[GRAPHS], flags[FROZEN],
    )  # fmt: skip


def _flag(parameters: Mapping[str, str], name: str) -> bool:
    word = parameters.get(name, "false")
    if word not in {"true", "false"}:
        raise ValueError(f"{name} {word!r}: expected true or false")
    return word == "true"


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


def _lengths(
    backend: str, parameters: Mapping[str, str], max_batch_size: int, inputs: Sequence[TensorSpec]
) -> tuple[int, ...]:
    """Return the lengths in order."""
    if LENGTH_BUCKETS not in parameters:
        return ()
    text, ragged = parameters[LENGTH_BUCKETS], [each for each in inputs if each.ragged]
    if max_batch_size < 1 or backend == CODE:
        reason = "it sees each request" if backend == CODE else "max_batch_size is 0"
        raise ValueError(f"{LENGTH_BUCKETS} {text!r}: the model has no batches to pad, {reason}")
    if not ragged or any(each.dims.count(-1) != 1 for each in ragged):
        raise ValueError(
            f"{LENGTH_BUCKETS} {text!r}: expected inputs with allow_ragged_batch, and in each one "
            "dimension of -1"
        )
    lengths = numbers(parameters, LENGTH_BUCKETS, "", int)
    if min(lengths) < 1 or len(lengths) > MOST_LENGTHS:
        raise ValueError(
            f"{LENGTH_BUCKETS} {text!r}: expected up to {MOST_LENGTHS} lengths from 1 on"
        )
    return tuple(sorted(set(lengths)))
