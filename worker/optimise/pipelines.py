"""`ferry export` of a scikit-learn pipeline: a joblib file becomes ONNX, and serves without pickle.

Loading it here runs whatever code is in it, so that wants FERRY_ALLOW_PICKLE once, where it is
exported.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.grpc import model_config_pb2

from shared.datatypes import datatype_of
from shared.errors import BadModel
from shared.settings import Settings
from worker.backends.loading import load_file
from worker.devices import Placement
from worker.optimise.example import draft_spec
from worker.optimise.export import EXPORT_RECORD, MAX_BATCH_SIZE, Export, ExportOrder, Written
from worker.optimise.figures import BY_PRECISION
from worker.optimise.quiet import first_sentence, quiet
from worker.optimise.rows import made_up_rows
from worker.optimise.sameness import batch_sizes, compared, sized_batches
from worker.optimise.subjects import Subject, loads_here
from worker.repository.adding.versions import Addition, NewVersion, add_versions
from worker.repository.config.completion import declare
from worker.repository.config.description import Described
from worker.repository.file_kinds import code_refusal, trusted_backends
from worker.repository.sniffer import what_is

JOBLIB = "joblib"
ONNX_FILE = "model.onnx"
LOCALE = "C.UTF-8"
MISSING_EXTRA = (
    "a scikit-learn pipeline needs {}, which is not installed: install Ferry with its extras "
    "[sklearn,convert]"
)


def is_pipeline(original: str) -> bool:
    """Tell whether what is to be exported is a file, and no callable."""
    file = Path(original)
    return file.is_file() and what_is(file).backend == JOBLIB


def export_pipeline(order: ExportOrder, repository: Path, settings: Settings) -> Export:
    """Convert a joblib file to ONNX, compare it and add it; raises BadModel in one sentence."""
    file = Path(order.original.path)
    _check_order(order, file, settings)
    with quiet(), tempfile.TemporaryDirectory(prefix="ferry-export-") as scratch:
        pipeline, description = _loaded(file)
        faults = []
        for numbers in _number_types(description):
            try:
                written, message = _written(order, file, pipeline, description, numbers,
                                            Path(scratch))  # fmt: skip
            except BadModel as error:
                faults.append(str(error))
            else:
                break
        else:
            raise BadModel(f"{file}: {faults[0]}")
        record = Path(scratch) / EXPORT_RECORD
        about = {"original": str(file.resolve()), "weights": None, "arguments": "{}"}
        record.write_text(json.dumps(about | {"format": "onnx", "notes": [*written.notes]}) + "\n")
        version = NewVersion({ONNX_FILE: written.file, EXPORT_RECORD: record})

        def configure(there: Any) -> None:
            if not there.input:
                there.MergeFrom(message)
                there.dynamic_batching.SetInParent()

        addition = Addition(order.name, [version], configure)
        directories = add_versions(repository, addition, loads_here(settings))
    return Export(directories, [written], [])


def _check_order(order: ExportOrder, file: Path, settings: Settings) -> None:
    if [*order.formats] not in ([], ["onnx"]):
        raise BadModel(f"{file} is a scikit-learn pipeline: --to onnx is all that it can become")
    if order.wishes.inputs or order.output_names:
        raise BadModel(f"{file} says itself what goes in and out: leave --input and --output out")
    if JOBLIB not in trusted_backends(settings):
        raise BadModel(f"{file}: {code_refusal(what_is(file))}")


def _loaded(file: Path) -> tuple[Any, dict[str, Any]]:
    try:
        import skl2onnx  # noqa: F401, PLC0415  an extra

        from worker.backends.joblib_pipeline import described  # noqa: PLC0415
        from worker.backends.operator_code import load_pipeline  # noqa: PLC0415
    except ModuleNotFoundError as missing:
        raise BadModel(MISSING_EXTRA.format(missing.name)) from missing
    try:
        pipeline = load_pipeline(file)
        return pipeline, described(pipeline)
    except Exception as error:  # a border: the file's own code
        raise BadModel(f"{file}: {first_sentence(error)}") from error


def _number_types(description: dict[str, Any]) -> list[str]:
    """Return the datatypes to try for the input: doubles first, as scikit-learn computes."""
    return ["STRING"] if description["inputs"][0][1] == "STRING" else ["FP64", "FP32"]


def _written(
    order: ExportOrder,
    file: Path,
    pipeline: Any,
    description: dict[str, Any],
    datatype: str,
    scratch: Path,
) -> tuple[Written, Any]:
    """Write the ONNX file with an input of `datatype`; return it and its ModelConfig."""
    name, _, shape = description["inputs"][0]
    target = scratch / f"{datatype}.onnx"
    outputs = [each[0] for each in description["outputs"]]
    model = _converted(pipeline, name, shape, datatype, order.opset)
    _rename(model, outputs)
    _set_locale(model)
    _save_checked(model, target)
    message = model_config_pb2.ModelConfig(
        name=order.name, max_batch_size=order.wishes.max_batch_size or MAX_BATCH_SIZE
    )
    declare(message, "input", [Described(name, datatype, shape)])
    for key, value in {**description["parameters"], **order.wishes.parameters}.items():
        message.parameters[key].string_value = value
    declare(message, "output", _outputs(target, message, outputs))
    reference = _subject("the pipeline", JOBLIB, message, file)
    message.parameters.pop("methods", None)
    candidate = _subject("what was written", "onnxruntime", message, target)
    rows = made_up_rows(candidate.spec, 2 * sum(batch_sizes(candidate.spec)), seed=6)
    figures = compared(reference, candidate, sized_batches(rows, candidate.spec), rows)
    if faults := figures.faults(BY_PRECISION["FP32"], real=False):
        raise BadModel(f"as ONNX it answers otherwise: {faults[0]}")
    largest = max(each.max_absolute for each in figures.differences.values())
    note = f"input {datatype}; differs by at most {largest:.2g} from the pipeline"
    return Written("onnx", target, [note]), message


def _subject(name: str, backend: str, message: Any, file: Path) -> Subject:
    spec = _spec(message)
    loaded = load_file(backend, spec, file, Placement("cpu"), trusted={JOBLIB})
    return Subject(name, spec, loaded)


def _spec(message: Any) -> Any:
    from worker.repository.config.tensors import read_tensor  # noqa: PLC0415

    outputs = tuple(read_tensor(item, Path()) for item in message.output)
    return draft_spec(message).with_changes(outputs=outputs)


def _converted(pipeline: Any, name: str, shape: list[int], datatype: str, opset: int | None) -> Any:
    from skl2onnx import convert_sklearn  # noqa: PLC0415  an extra
    from skl2onnx.common import data_types  # noqa: PLC0415

    types = {
        "STRING": data_types.StringTensorType,
        "FP32": data_types.FloatTensorType,
        "FP64": data_types.DoubleTensorType,
    }
    options = {"zipmap": False} if hasattr(pipeline, "predict_proba") else None
    try:
        return convert_sklearn(
            pipeline,
            initial_types=[(name, types[datatype]([None, *shape[1:]]))],
            options=None if options is None else {id(pipeline): options},
            target_opset=opset,
        )
    except Exception as error:  # a border: the converter raises many kinds
        raise BadModel(f"skl2onnx cannot convert it: {first_sentence(error)}") from error


def _rename(model: Any, names: list[str]) -> None:
    """Call the outputs of a graph as those of the pipeline are called when it serves itself."""
    given = [each.name for each in model.graph.output]
    if len(given) < len(names):
        raise BadModel(f"as ONNX it has the outputs {given}, expected {names}")
    del model.graph.output[len(names) :]
    changes = dict(zip(given, names, strict=False))
    for node in model.graph.node:
        node.input[:] = [changes.get(each, each) for each in node.input]
        node.output[:] = [changes.get(each, each) for each in node.output]
    for each in model.graph.output:
        each.name = changes[each.name]


def _set_locale(model: Any) -> None:
    """Have texts lowered by the locale that every Linux has; ONNX Runtime's own is often missing.

    It is en_US.UTF-8 where a file names none, which slim containers lack.
    """
    from onnx import helper  # noqa: PLC0415  an extra

    for node in model.graph.node:
        if node.op_type == "StringNormalizer" and "locale" not in {a.name for a in node.attribute}:
            node.attribute.append(helper.make_attribute("locale", LOCALE))


def _save_checked(model: Any, target: Path) -> None:
    import onnx  # noqa: PLC0415  an extra

    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # a border: the checker's errors have no base
        raise BadModel(f"the ONNX file fails onnx's checker: {first_sentence(error)}") from error
    onnx.save(model, str(target))


def _outputs(target: Path, message: Any, names: list[str]) -> Iterator[Described]:
    """Yield the outputs as they come for two made-up rows."""
    import onnxruntime  # noqa: PLC0415

    spec = draft_spec(message)
    try:
        session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    except Exception as error:  # a border: the runtime's errors have no base
        raise BadModel(f"ONNX Runtime does not load it: {first_sentence(error)}") from error
    batch = made_up_rows(spec, 2).take([0, 1])
    feeds = {
        name: np.array([each.decode() for each in array.ravel()]).reshape(array.shape)
        if array.dtype.hasobject
        else array
        for name, array in batch.inputs.items()
    }
    for name, array in zip(names, session.run(names, feeds), strict=True):
        made = np.asarray(array)
        datatype = "BYTES" if made.dtype.hasobject else datatype_of(made)
        word = "STRING" if datatype == "BYTES" else datatype
        yield Described(name, word, [-1, *(made.shape[1:] or (1,))])
