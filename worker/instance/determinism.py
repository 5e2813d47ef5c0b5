"""Finds exported models whose answers depend on chance, or on the other rows of a batch.

A graph traced in training mode keeps its dropout, and batch normalisation that uses the batch's own
statistics. Both serve without an error, and answer a row differently alone, in a batch, or twice.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np

from shared.datatypes import NUMPY_TYPES, Array
from shared.errors import BadModel
from shared.model_spec import ModelSpec, TensorSpec
from worker.backends.base import Backend
from worker.instance.warmup import ANY_SIZE

log = logging.getLogger(__name__)

CHECKED = {"torchscript", "torch_export", "torch_state_dict", "onnxruntime"}
OPT_OUT = "allow_nondeterministic"
PROBE_ROWS = 3
PROBE_SEED = 20260
REPEAT_TOLERANCE = 1e-3
"""Of the largest value: the same kernels on the same numbers differ in the order of sums only."""
BATCH_TOLERANCE = 0.1
"""Of the largest value. Kernels for other batch sizes differ by 1e-5, in half precision 1e-2, and
dynamic quantisation, which takes its scale from the whole batch, by a few 1e-2 (2026-11-21).
Batch normalisation in training mode differs by about as much as there is."""


def check_deterministic(spec: ModelSpec, backend_name: str, backend: Backend) -> None:
    """Raise BadModel when an exported model answers the same row differently.

    Three passes over made-up rows, seeded. Nothing is said of models that run the operator's own
    code, that take BYTES, that refuse the rows, or whose config says `allow_nondeterministic`.
    """
    if backend_name not in CHECKED or spec.parameters.get(OPT_OUT) == "true":
        return
    if any(tensor.datatype == "BYTES" for tensor in spec.inputs):
        return
    pixels = frozenset({spec.image.input} if spec.image else ())
    batch = made_up_rows(spec, min(PROBE_ROWS, spec.batch_rows))
    try:
        first, second = backend.forward(batch, pixels), backend.forward(batch, pixels)
        alone = backend.forward(_first_row(batch), pixels) if spec.max_batch_size > 1 else {}
    except Exception as error:  # a border: the model may refuse what is made up
        log.info("%s: not looked at for training mode, it raised: %s", spec.key, error)
        return
    if not _agree(first, second, REPEAT_TOLERANCE):
        raise BadModel(_sentence("when it is asked the same twice", "dropout"))
    if alone and not _agree(_first_row(_floats(first)), _floats(alone), BATCH_TOLERANCE):
        raise BadModel(_sentence("alone and in a batch", "batch normalisation"))


def _sentence(when: str, suspect: str) -> str:
    return (
        f"the model answers the same row differently {when}, as with {suspect} in training mode: "
        f"export it after eval(). If it is meant to, say so with parameters {{ key: "
        f'"{OPT_OUT}" value {{ string_value: "true" }} }}'
    )


def made_up_rows(spec: ModelSpec, rows: int) -> dict[str, Array]:
    """Return seeded rows that most models take, the later ones larger than the first.

    Pictures are noise, integers 0 and 1, which are in every vocabulary and every mask.
    """
    random = np.random.default_rng(PROBE_SEED)
    return {tensor.name: _tensor(spec, tensor, rows, random) for tensor in spec.inputs}


def _tensor(spec: ModelSpec, tensor: TensorSpec, rows: int, random: np.random.Generator) -> Array:
    if spec.image and spec.image.input == tensor.name:
        shape = [rows, spec.image.height, spec.image.width, len(spec.image.channels)]
        noise = random.integers(0, 128, shape)
        noise[1:] += 127
        return noise.astype(np.uint8)
    dims = [ANY_SIZE if size == -1 else size for size in tensor.dims]
    shape = [rows, *dims] if spec.batched else dims
    wanted = NUMPY_TYPES[tensor.datatype]
    if tensor.datatype.startswith(("FP", "BF")):
        values = random.normal(size=shape)
        if spec.batched:
            values[1:] = 2 * values[1:] + 1
        return values.astype(wanted)
    bits = random.integers(0, 2, shape)
    bits[..., :1] = 1  # no mask is all zeros
    return bits.astype(wanted)


def _first_row(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: array[:1] for name, array in arrays.items()}


def _floats(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Leave out labels and counts, which may flip at a boundary."""
    return {name: array for name, array in arrays.items() if array.dtype.kind not in "iub"}


def _agree(one: Mapping[str, Array], other: Mapping[str, Array], tolerance: float) -> bool:
    return all(_close(one[name], other[name], tolerance) for name in one)


def _close(one: Array, other: Array, tolerance: float) -> bool:
    """Tell whether no two values are further apart than a part of the largest."""
    if one.dtype == object or one.shape != other.shape:
        return bool(one.shape == other.shape and (one == other).all())
    left, right = one.astype(np.float64), other.astype(np.float64)
    known = np.isfinite(left) & np.isfinite(right)
    if not known.any():
        return True
    largest = max(np.abs(left[known]).max(), np.abs(right[known]).max())
    return bool(np.abs(left - right)[known].max() <= tolerance * largest)
