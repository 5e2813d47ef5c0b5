"""Describes the tensors that a model's file takes and gives: ONNX, exported programs.

Reading a file happens in the process of `worker.repository.describer`: what is damaged can then do
no harm to the supervisor, which loads no framework either. Exported programs are archives whose
graph is JSON, so torch is not needed.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from worker.repository.sniffer import what_is

EXPORTED_SUFFIX = ".pt2"
LEAST_KNOWN_ROWS = 2
"""torch.export writes 2 as the least size of a dimension whose least size nobody gave."""
ONNX_TYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
    "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16",
    "bfloat16": "BF16", "float": "FP32", "double": "FP64", "string": "STRING",
}  # fmt: skip
PROBABILITIES = {"seq(map(int64,tensor(float)))", "seq(map(string,tensor(float)))"}
"""The type of what scikit-learn's exporter makes of probabilities: by class, for each row."""
EXPORT_TYPES = {
    1: "UINT8", 2: "INT8", 3: "INT16", 4: "INT32", 5: "INT64", 6: "FP16", 7: "FP32", 8: "FP64",
    12: "BOOL", 13: "BF16", 28: "UINT16", 34: "UINT32", 35: "UINT64",
}  # fmt: skip
"""ScalarType of torch._export.serde.schema, by number; the others have no TYPE of Triton's."""


class Described(NamedTuple):
    """One tensor of a file: `datatype` without TYPE_, -1 for free dimensions."""

    name: str
    datatype: str
    shape: list[int]
    optional: bool = False


class Description(NamedTuple):
    """All tensors of a file; `rows` is the least and the greatest size of a free first dimension.

    0 as the greatest is no bound. `rows` is None unless every tensor has a free first dimension.
    """

    inputs: list[Described]
    outputs: list[Described]
    rows: tuple[int, int] | None


def read(file: Path) -> Description:
    """Describe `file`, in this process; raises whatever it does to its reader."""
    backend = what_is(file).backend
    by_name = "torch_export" if file.suffix == EXPORTED_SUFFIX else "onnxruntime"
    return _exported(file) if (backend or by_name) == "torch_export" else _onnx(file)


def import_framework(file: Path) -> None:
    """Import what `read` needs for a file of this kind, which takes longer than to read it."""
    if file.suffix != EXPORTED_SUFFIX:
        import onnxruntime  # noqa: F401, PLC0415  only in a process that describes


def _onnx(file: Path) -> Description:
    """Describe a file by ONNX Runtime's view of it, its graph not optimised."""
    import onnxruntime  # noqa: PLC0415  only in this process

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])
    inputs = [onnx_tensor(node) for node in session.get_inputs()]
    outputs = [onnx_tensor(node) for node in session.get_outputs() if "tensor(" in node.type]
    return Description(inputs, outputs, (1, 0) if _all_free(inputs + outputs) else None)


def onnx_tensor(node: Any) -> Described:
    """Describe what a session says of one tensor; raises ValueError for what is none.

    Its shape is empty also when it is not known. Probabilities by class are a tensor to us.
    """
    if node.type in PROBABILITIES:
        return Described(node.name, "FP32", [-1, -1])
    optional = node.type.startswith("optional(")
    kind = node.type.removeprefix("optional(").removeprefix("tensor(").rstrip(")")
    if kind not in ONNX_TYPES or "seq(" in node.type:
        raise ValueError(f"{node.name!r} is a {node.type} in the file, which no request can carry")
    shape = [size if isinstance(size, int) and size > 0 else -1 for size in node.shape]
    return Described(node.name, ONNX_TYPES[kind], shape, optional)


def _all_free(tensors: Sequence[Described]) -> bool:
    return all(tensor.shape[:1] == [-1] for tensor in tensors)


def _exported(file: Path) -> Description:
    """Describe a program by the JSON of its graph; its names are those of `forward`'s arguments.

    Outputs are named by the dictionary that `forward` returns, else OUTPUT__0, OUTPUT__1 and so on:
    the graph's own names for them change with every export.
    """
    with zipfile.ZipFile(file) as archive:
        [entry] = [each for each in archive.namelist() if fnmatchcase(each, "*models/model.json")]
        program = json.loads(archive.read(entry))
    module = program["graph_module"]
    names = [_user_tensor(each, "user_input") for each in module["signature"]["input_specs"]]
    results = [_user_tensor(each, "user_output") for each in module["signature"]["output_specs"]]
    known = module["graph"]["tensor_values"]
    inputs = [_exported_tensor(name, known[name]) for name in names if name]
    found = [known[name] for name in results if name]
    labels = _output_names(module["module_call_graph"][0]["signature"]["out_spec"], len(found))
    outputs = [_exported_tensor(*each) for each in zip(labels, found, strict=True)]
    return Description(inputs, outputs, _rows(inputs, outputs, program, known, names))


def _user_tensor(spec: dict[str, Any], kind: str) -> str:
    """Return the graph's name of a tensor that callers see, empty for all else."""
    argument = spec[kind]["arg"] if kind in spec else {}
    name: str = argument.get("as_tensor", {}).get("name", "")
    return name


def _exported_tensor(name: str, value: dict[str, Any]) -> Described:
    if value["dtype"] not in EXPORT_TYPES:
        raise ValueError(f"tensor {name!r} has torch's dtype {value['dtype']}, which Triton lacks")
    shape = [size.get("as_int", -1) for size in value["sizes"]]
    return Described(name, EXPORT_TYPES[value["dtype"]], shape)


def _output_names(out_spec: str, count: int) -> list[str]:
    _, spec = json.loads(out_spec)
    children = spec["children_spec"]
    if any(child["type"] is not None for child in children):
        raise ValueError("forward returns tensors within tensors' lists, which have no names")
    if spec["type"] == "builtins.dict":
        return [str(key) for key in json.loads(spec["context"])]
    return [f"OUTPUT__{index}" for index in range(count)]


def _rows(
    inputs: list[Described],
    outputs: list[Described],
    program: dict[str, Any],
    known: dict[str, Any],
    names: list[str],
) -> tuple[int, int] | None:
    """Return the range of the first dimension, None unless it is the same symbol in all inputs."""
    if not inputs or not _all_free(inputs + outputs):
        return None
    firsts = {known[name]["sizes"][0]["as_expr"]["expr_str"] for name in names if name}
    symbol = next(iter(firsts)).removeprefix("Symbol('").partition("'")[0]
    bounds = program["range_constraints"].get(symbol)
    if len(firsts) > 1 or bounds is None:
        return None
    least, most = bounds["min_val"] or 1, bounds["max_val"] or 0
    return (least if least > LEAST_KNOWN_ROWS else 1), most
