"""The one table of all fields of Triton's model_config.proto: honoured, refused or no effect.

A field whose absence would change answers, or break a promise, is refused; a hint that only costs
or saves time is taken without effect, and says so in the log. docs/repository.md shows the table.
Source: https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal, NamedTuple

HONOURED: Final = "honoured"
REFUSED: Final = "refused"
NO_EFFECT: Final = "no effect"
LONGEST_VALUE = 60


class Field(NamedTuple):
    """A field, and all within it that has no row of its own; map entries stand for their values."""

    path: str
    treatment: Literal["honoured", "refused", "no effect"]
    said: str


CONFIG_FIELDS = (
    Field("name", HONOURED, "must be the directory's name when it is given"),
    Field("platform", HONOURED, "which framework runs the file; see Formats"),
    Field("backend", HONOURED, "likewise; one of the two is enough, or the file's name"),
    Field("runtime", REFUSED, "it names a shared library of Triton's, which Ferry does not load"),
    Field("version_policy", HONOURED, "which version directories are served; see Versions"),
    Field("max_batch_size", HONOURED, "most rows in one forward pass; 0: no batch dimension"),
    Field("input", HONOURED, "what goes in: name, data_type, dims"),
    Field("input.format", HONOURED, "FORMAT_NHWC or FORMAT_NCHW: how a picture is laid out"),
    Field("input.reshape", HONOURED, "clients send dims, the model gets this shape"),
    Field("input.is_shape_tensor", REFUSED, "only TensorRT has shape tensors"),
    Field("input.allow_ragged_batch", HONOURED, "rows of different size share a batch, padded"),
    Field("input.optional", HONOURED, "a request may leave it out, the model then does not get it"),
    Field("input.is_non_linear_format_io", REFUSED, "only TensorRT has such formats"),
    Field("output", HONOURED, "what comes out: name, data_type, dims"),
    Field("output.reshape", HONOURED, "the model gives this shape, clients get dims"),
    Field("output.label_filename", HONOURED, "names of the classes, one per line"),
    Field("output.is_shape_tensor", REFUSED, "only TensorRT has shape tensors"),
    Field("output.is_non_linear_format_io", REFUSED, "only TensorRT has such formats"),
    Field("batch_input", REFUSED, "ragged inputs are padded here: name a mask by a parameter"),
    Field("batch_output", REFUSED, "outputs have one row for each row of the inputs"),
    Field("optimization.graph", HONOURED, "ONNX: -1 basic, 1 extended, 2 no optimisation, 0 all"),
    Field("optimization.priority", NO_EFFECT, "instances are processes that share a GPU evenly"),
    Field("optimization.cuda", NO_EFFECT, "CUDA graphs and streams are left to the framework"),
    Field(
        "optimization.execution_accelerators", REFUSED,
        "ONNX Runtime's own CPU and CUDA providers run the model; others may compute otherwise",
    ),
    Field("optimization.input_pinned_memory", NO_EFFECT, "copies are the framework's own"),
    Field("optimization.output_pinned_memory", NO_EFFECT, "copies are the framework's own"),
    Field("optimization.gather_kernel_buffer_threshold", NO_EFFECT, "rows are joined on the CPU"),
    Field("optimization.eager_batching", NO_EFFECT, "a batch is joined once it has left the queue"),
    Field("dynamic_batching", HONOURED, "how requests become batches; see docs/queue.md"),
    Field("sequence_batching", REFUSED, "requests are independent: no sequence keeps an instance"),
    Field("ensemble_scheduling", HONOURED, "the steps of an ensemble, and how tensors pass"),
    Field("ensemble_scheduling.step.model_namespace", REFUSED, "a repository has one namespace"),
    Field(
        "ensemble_scheduling.max_inflight_requests", REFUSED,
        "steps give one answer to one request, so nothing piles up between them",
    ),
    Field("instance_group.name", HONOURED, "shown in the model's configuration"),
    Field("instance_group.kind", HONOURED, "KIND_AUTO, KIND_GPU or KIND_CPU; see Devices"),
    Field("instance_group.count", HONOURED, "processes, on GPUs per GPU; 1 when left out"),
    Field("instance_group.rate_limiter", REFUSED, "no resources are shared out among models"),
    Field("instance_group.gpus", HONOURED, "only these GPUs"),
    Field("instance_group.secondary_devices", REFUSED, "no device but the CPU and GPUs is known"),
    Field("instance_group.profile", REFUSED, "only TensorRT has optimisation profiles"),
    Field("instance_group.passive", REFUSED, "an instance that takes no requests is not started"),
    Field("instance_group.host_policy", NO_EFFECT, "instances are not bound to NUMA nodes"),
    Field("default_model_filename", HONOURED, "the model's file in the version's directory"),
    Field(
        "cc_model_filenames", REFUSED,
        "one file serves all GPUs: write default_model_filename",
    ),
    Field("metric_tags", NO_EFFECT, "metrics carry model and version; shown in the configuration"),
    Field("parameters", HONOURED, "pre- and post-processing, and what a model's own code reads"),
    Field("model_warmup", HONOURED, "run before the model is ready, in place of made-up inputs"),
    Field("model_operations", REFUSED, "no libraries with operators are loaded"),
    Field(
        "model_transaction_policy.decoupled", REFUSED,
        "every request has one answer, which a decoupled model does not promise",
    ),
    Field("model_repository_agents", REFUSED, "no agents run, so what they check is not checked"),
    Field("response_cache", HONOURED, "answers are kept and given again for the same inputs"),
    Field("model_metrics", NO_EFFECT, "histograms have the buckets that Ferry has"),
)  # fmt: skip
_ROWS = {field.path: field for field in CONFIG_FIELDS}


def row_of(path: str) -> Field | None:
    """Return the row of a field: its own, or that of the message that it is part of."""
    while path:
        if path in _ROWS:
            return _ROWS[path]
        path = path.rpartition(".")[0]
    return None


def check_fields(message: Any) -> list[str]:
    """Return a sentence for each field that is set without effect.

    Raises ValueError naming the first field that is refused, its value, and why.
    """
    notes = []
    for path, where, value in _set_fields(message):
        row = row_of(path)
        assert row is not None, f"{path} is in the table: a test sees to that"
        if row.treatment == REFUSED:
            raise ValueError(f"{where} {value} is not supported: {row.said}")
        if row.treatment == NO_EFFECT:
            notes.append(f"{where} {value} has no effect: {row.said}")
    return notes


def _set_fields(message: Any, path: str = "", where: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield path, place and value of the fields that are set, those of messages one by one.

    The place is the path with the names, keys or numbers of repeated messages.
    """
    for field, value in message.ListFields():
        inner, place = f"{path}{field.name}", f"{where}{field.name}"
        is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        if field.message_type is None or not _has_rows_within(inner):
            yield inner, place, _shown(field, value)
        elif is_map:
            for key in sorted(value):
                yield from _set_fields(value[key], f"{inner}.", f"{place}[{key}].")
        elif field.is_repeated:
            for index, item in enumerate(value):
                name = getattr(item, "name", "") or index
                yield from _set_fields(item, f"{inner}.", f"{place}[{name}].")
        else:
            yield from _set_fields(value, f"{inner}.", f"{place}.")


def _has_rows_within(path: str) -> bool:
    return any(row.startswith(f"{path}.") for row in _ROWS)


def _shown(field: Any, value: Any) -> str:
    """Return a value as text on one line, cut when it is long."""
    if field.enum_type is not None and not field.is_repeated:
        known = field.enum_type.values_by_number.get(value)
        text = known.name if known else str(value)
    elif isinstance(value, bool):
        text = str(value).lower()
    elif field.message_type is None:
        text = repr(list(value) if field.is_repeated else value)
    elif field.is_repeated:
        text = " ".join(str(value).split())
    else:
        text = "{ " + " ".join(str(value).split()) + " }"
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."
