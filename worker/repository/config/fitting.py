"""Tells whether the tensors of a model's file, or its answers, fit those that a config declares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from shared.errors import BadModel
from shared.model_spec import ModelSpec, TensorSpec
from worker.repository.config.description import Described

Shape = tuple[int, ...]


def check_described(
    spec: ModelSpec, inputs: Mapping[str, Described], outputs: Mapping[str, Described]
) -> None:
    """Raise BadModel for a declared tensor that can never be the file's one of its name.

    An input must have the file's datatype and sizes; of an output the sizes may differ as those of
    an answer may. Tensors that are not described are not looked at.
    """
    for kind, declared, described in (
        *(("input", each, inputs.get(each.name)) for each in spec.inputs),
        *(("output", each, outputs.get(each.name)) for each in spec.outputs),
    ):
        if described is not None:
            _check(kind, declared, described, spec)


def _check(kind: str, declared: TensorSpec, described: Described, spec: ModelSpec) -> None:
    where = f"{kind} {declared.name!r}"
    datatype = described.datatype.replace("STRING", "BYTES")
    if datatype != declared.datatype:
        raise BadModel(
            f"{where}: datatype {datatype} in the file, the config declares {declared.datatype}"
        )
    shape, ours = tuple(described.shape), spec.full_shape(declared)
    if not shape:
        return  # ONNX Runtime says so of a number, and of a shape that it does not know
    leading = len(ours) - len(declared.dims)
    rows = with_edges(shape[leading:], len(declared.dims))  # exporters write the rows they saw
    if kind == "input":
        rows = iter([shape[leading:]] if len(shape) == len(ours) else [])
    if not any(_may_fit(row, declared.dims, is_input=kind == "input") for row in rows):
        raise BadModel(f"{where}: shape {list(shape)} in the file, the config declares {ours}")
    if kind == "input" and spec.batched:
        _check_rows(where, shape[0], spec)


def _check_rows(where: str, rows: int, spec: ModelSpec) -> None:
    if rows != -1 and not rows == spec.max_batch_size == 1:
        other = "max_batch_size: 1" if rows == 1 else "max_batch_size: 0 and dims with all sizes"
        raise BadModel(
            f"{where}: the file takes {rows} rows and no other number, max_batch_size is "
            f"{spec.max_batch_size}: export it with a free first dimension, or write {other}"
        )


def _may_fit(shape: Shape, ours: Shape, *, is_input: bool) -> bool:
    """Tell whether the sizes may be equal: one of -1 may, but an input of any size is not fixed."""
    return all(
        theirs in (-1, size) or (size == -1 and not is_input)
        for theirs, size in zip(shape, ours, strict=True)
    )


def with_edges(row: Shape, count: int) -> Iterator[Shape]:
    """Yield `row` as `count` dimensions: of 1 put to its edges, or taken away from them.

    A size that is not known may be 1.
    """
    missing = count - len(row)
    for front in range(missing + 1):
        yield (1,) * front + row + (1,) * (missing - front)
    for front in range(-missing + 1 if missing < 0 else 0):
        end = len(row) + missing + front
        if {*row[:front], *row[end:]} <= {1, -1}:
            yield row[front:end]


def fits(got: Shape, wanted: Shape) -> bool:
    """Tell whether a shape is the wanted one, whose -1 stand for any size."""
    return len(got) == len(wanted) and all(
        want in (-1, size) for size, want in zip(got, wanted, strict=True)
    )
