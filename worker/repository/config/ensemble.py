"""The `ensemble_scheduling` block of a `config.pbtxt`, and whether its steps' models fit together.

The rules are Triton's: ValidateEnsembleSchedulingConfig and ValidateEnsembleConfig in
https://github.com/triton-inference-server/core.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from shared.errors import BadModel
from shared.model_spec import EnsembleStep, ModelSpec, TensorSpec
from worker.repository.config.formats import Format
from worker.repository.config.image import DECODE_IN

PLATFORM = "ensemble"
FORMAT = Format(PLATFORM, PLATFORM, "", (), ())
"""An ensemble has no file; its version directory may be empty."""
LATEST = -1
NOT_FOR_ENSEMBLES = ("model_warmup", "optimization", "default_model_filename")
NO_DEVICE = (0, 2)
"""KIND_AUTO and KIND_CPU, the only kinds of an ensemble's processes: its steps have the devices."""


def read_steps(message: Any) -> tuple[EnsembleStep, ...]:
    """Return an ensemble's steps, none for any other model; raises ValueError naming the step."""
    if (message.platform == PLATFORM) != message.HasField("ensemble_scheduling"):
        raise ValueError(
            f"platform {message.platform!r}: ensemble_scheduling belongs to the platform "
            f"{PLATFORM!r}, and that needs it"
        )
    if message.platform != PLATFORM:
        return ()
    given = {field.name for field, _ in message.ListFields()}
    for field in NOT_FOR_ENSEMBLES:
        if field in given:
            raise ValueError(f"{field} cannot be set for an ensemble, only for its steps' models")
    if message.response_cache.enable:
        raise ValueError(
            "response_cache cannot be enabled for an ensemble: it would outlive its steps' models; "
            "enable it for them"
        )
    if DECODE_IN in message.parameters:
        raise ValueError(
            f"{DECODE_IN} cannot be set for an ensemble, whose pictures are decoded at the API: "
            "several steps may want them"
        )
    if any(group.kind not in NO_DEVICE for group in message.instance_group):
        raise ValueError("instance_group: an ensemble has KIND_AUTO or KIND_CPU only")
    steps = tuple(
        _step(number, item) for number, item in enumerate(message.ensemble_scheduling.step, 1)
    )
    if not steps:
        raise ValueError("ensemble_scheduling: at least one step must be given")
    _check_flow(message, steps)
    return steps


def _step(number: int, item: Any) -> EnsembleStep:
    for field in ("model_name", "input_map", "output_map"):
        if not getattr(item, field):
            raise ValueError(f"ensemble_scheduling: step {number} has no {field}")
    if item.model_namespace:
        raise ValueError(f"ensemble_scheduling: step {number}: model_namespace is not supported")
    version = item.model_version
    if version != LATEST and version < 1:
        raise ValueError(f"ensemble_scheduling: step {number}: model_version {version}")
    return EnsembleStep(
        model=item.model_name,
        version="" if version == LATEST else str(version),
        input_map=dict(item.input_map),
        output_map=dict(item.output_map),
    )


def _check_flow(message: Any, steps: Sequence[EnsembleStep]) -> None:
    """Raise ValueError unless each tensor has one source, comes before its use, and is used."""
    inputs = {item.name for item in message.input}
    outputs = {item.name for item in message.output}
    sources = Counter(inputs)
    for step in steps:
        sources.update(step.output_map.values())
    twice = [name for name, count in sources.items() if count > 1]
    if twice:
        raise ValueError(f"ensemble_scheduling: tensor {twice[0]!r} comes from several places")
    read = {name for step in steps for name in step.input_map.values()}
    for name in sorted((read | outputs) - sources.keys()):
        raise ValueError(f"ensemble_scheduling: no step gives tensor {name!r}")
    for name in sorted(sources.keys() - read - outputs):
        raise ValueError(f"ensemble_scheduling: tensor {name!r} is not used")
    known, pending = set(inputs), list(steps)
    while ready := [step for step in pending if known >= set(step.input_map.values())]:
        known.update(name for step in ready for name in step.output_map.values())
        pending = [step for step in pending if step not in ready]
    if pending:
        names = [step.model for step in pending]
        raise ValueError(f"ensemble_scheduling: the steps {names} wait for each other in a circle")


class EnsembleCircle(BadModel):
    """An ensemble is a step of itself, or of one of its steps."""


def with_models(
    ensemble: ModelSpec, read: Callable[[int, EnsembleStep], ModelSpec | None]
) -> ModelSpec:
    """Return an ensemble whose steps' models fit, with the levels of priority that they have.

    `read` returns the spec of a step's model, None when it cannot be read yet. The levels are
    those of the step that has most. Raises BadModel.
    """
    models = [read(number, step) for number, step in enumerate(ensemble.steps, 1)]
    check_models(ensemble, models)
    known = [model for model in models if model is not None]
    most = max(known, key=lambda model: model.priority_levels, default=ensemble)
    return ensemble.model_copy(
        update={
            "priority_levels": most.priority_levels,
            "default_priority_level": most.default_priority_level,
            "level_floors": most.level_floors,
        }
    )


class _Seen(NamedTuple):
    """The type and shape that one side gives to an ensemble's tensor."""

    by: str
    datatype: str
    dims: tuple[int, ...]
    full: tuple[int, ...]


def check_models(ensemble: ModelSpec, models: Sequence[ModelSpec | None]) -> None:
    """Raise BadModel unless the steps' models fit the ensemble and each other.

    `models` are the steps', None where nothing is known of one yet.
    """
    seen: dict[str, _Seen] = {}
    for tensor in (*ensemble.inputs, *ensemble.outputs):
        seen[tensor.name] = _seen(ensemble, tensor)
    for number, (step, model) in enumerate(zip(ensemble.steps, models, strict=True), 1):
        if model is None:
            continue
        try:
            _check_model(ensemble, step, model, seen)
        except ValueError as error:
            raise BadModel(
                f"failed to load '{ensemble.name}', step {number} ('{step.model}'): {error}"
            ) from error


def _check_model(
    ensemble: ModelSpec, step: EnsembleStep, model: ModelSpec, seen: dict[str, _Seen]
) -> None:
    if 0 < model.max_batch_size < ensemble.max_batch_size:
        raise ValueError(
            f"its max_batch_size is {model.max_batch_size}, the ensemble's is "
            f"{ensemble.max_batch_size}"
        )
    outputs = {tensor.name: tensor for tensor in model.outputs}
    for kind, names, declared in (
        ("input", step.input_map, model.inputs_by_name),
        ("output", step.output_map, outputs),
    ):
        for name, tensor in names.items():
            if name not in declared:
                raise ValueError(
                    f"{kind}_map names {name!r}, the model's {kind}s are {list(declared)}"
                )
            here = _seen(model, declared[name])
            _check_same(tensor, seen.setdefault(tensor, here), here)
    _check_missing(ensemble, step, model)
    _check_pictures(ensemble, step, model)


def _seen(model: ModelSpec, tensor: TensorSpec) -> _Seen:
    return _Seen(model.name, tensor.datatype, tensor.dims, tuple(model.full_shape(tensor)))


def _check_same(name: str, one: _Seen, other: _Seen) -> None:
    """Raise ValueError for two datatypes or shapes; -1 fits all, and is looked at when it runs.

    Shapes may be the same with or without a batch dimension, as in Triton.
    """
    if one.datatype != other.datatype:
        raise ValueError(
            f"tensor {name!r}: datatype {one.datatype} in '{one.by}', {other.datatype} in "
            f"'{other.by}'"
        )
    if not _fits(one.dims, other.dims) and not _fits(one.full, other.full):
        raise ValueError(
            f"tensor {name!r}: shape {list(one.full)} in '{one.by}', {list(other.full)} in "
            f"'{other.by}'"
        )


def _fits(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return len(one) == len(other) and all(
        a == b or -1 in (a, b) for a, b in zip(one, other, strict=True)
    )


def _check_missing(ensemble: ModelSpec, step: EnsembleStep, model: ModelSpec) -> None:
    """Raise ValueError for an input that the model needs and may not get."""
    for tensor in model.inputs:
        source = ensemble.inputs_by_name.get(step.input_map.get(tensor.name, ""))
        if tensor.optional:
            continue
        if tensor.name not in step.input_map:
            raise ValueError(f"input_map does not name its input {tensor.name!r}")
        if source is not None and source.optional:
            raise ValueError(f"its input {tensor.name!r} is not optional, the ensemble's is")


def _check_pictures(ensemble: ModelSpec, step: EnsembleStep, model: ModelSpec) -> None:
    """Raise ValueError unless pixels that the API made reach a model that normalises such."""
    image = ensemble.image
    for name, tensor in step.input_map.items():
        if image is None or tensor != image.input:
            continue
        if model.image is None or model.image.input != name:
            raise ValueError(f"the ensemble has pictures for its input {name!r}, which takes none")
        ours, theirs = (
            (each.height, each.width, each.channels, each.layout) for each in (image, model.image)
        )
        if ours != theirs:
            raise ValueError(f"the ensemble's pictures are {ours}, those of {name!r} {theirs}")
