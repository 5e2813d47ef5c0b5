"""The signals of rows and of answers, whose distributions are compared: a number for each row.

    prediction               the class
    confidence, entropy      of the probabilities (entropy in nats)
    output, norm, similarity of an answer that names no class: the mean of its numbers, their
                             length as a vector, its cosine with the mean direction of the reference
    brightness, contrast     mean and standard deviation of a picture's pixels, 0 to 255
    detail                   the mean difference between neighbouring pixels
    centre_x, centre_y       where its parts lie that differ from its mean, 0 to 1
    tokens, length           of a text in tokens, or in bytes; elements of an open dimension
    mean, spread, column_0   of a row of numbers: of all of them, and each column, if they are few

Of several inputs each has its own, as `mean of age`. A picture's are those of a grid of about
32 x 32 of its pixels, and a row's of about 4096 numbers: what is not looked at costs nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np

from shared.datatypes import Array
from shared.drift.answers import (
    FEWEST_CLASSES,
    classes,
    is_float,
    probabilities,
    scored_output,
)
from shared.model_spec import ImageInput, ModelSpec, TensorSpec

Values = dict[str, Array]
"""A signal's value for each row, by its name."""
PREDICTION, SIMILARITY = "prediction", "similarity"
MASK = "attention_mask"
TINY = 1e-12
GRID = 32
"""Pixels of a picture that are looked at, to each side; about twice as many of small ones."""
NUMBERS_OF_ROW = 4096
"""Of a row, that are looked at."""
MOST_COLUMNS = 16
"""Of a row, that are looked at one by one."""
SMALLEST_SIDE = 8
"""Of what is taken for a picture though no config says so."""
CHANNEL_COUNTS = (1, 3, 4)


def input_signals(spec: ModelSpec, inputs: Mapping[str, Array], pixels: Collection[str]) -> Values:
    """Return the signals of rows [rows, ...] by input name; `pixels` are pictures as uint8.

    A picture that came as the model's own input counts as the pixels that it was made of.
    """
    if spec.text is not None:
        return {"tokens": _token_counts(spec, inputs)}
    found: Values = {}
    with np.errstate(all="ignore"):  # of rows that are not finite
        for tensor in spec.inputs:
            if tensor.name in inputs and inputs[tensor.name].size:
                behind = f" of {tensor.name}" if len(spec.inputs) > 1 else ""
                values = _of_input(spec, tensor, inputs[tensor.name], tensor.name in pixels)
                found |= {f"{name}{behind}": each for name, each in values}
    return found


def _token_counts(spec: ModelSpec, inputs: Mapping[str, Array]) -> Array:
    """Return how many tokens each text has; where no mask says it, those that are no padding."""
    mask = inputs.get(MASK)
    if mask is not None:
        return np.asarray(mask.reshape(len(mask), -1).sum(axis=1))
    name, ids = next(iter(inputs.items()))
    tensor = spec.inputs_by_name.get(name)
    is_own = ids.reshape(len(ids), -1) != (tensor.pad if tensor else 0)
    return np.asarray(is_own.sum(axis=1))


def _of_input(
    spec: ModelSpec, tensor: TensorSpec, array: Array, is_pixels: bool
) -> Iterator[tuple[str, Array]]:
    image = spec.image if spec.image and spec.image.input == tensor.name else None
    if array.dtype.kind in "OSU":
        yield "length", _byte_counts(array)
        return
    if is_pixels:
        yield from _of_pictures(array, 1.0, 0.0)
        return
    pictures = _as_pictures(array, image.layout if image else "")
    if pictures is not None:
        yield from _of_pictures(pictures, *_to_pixels(image))
        return
    if -1 in tensor.dims:
        yield "length", np.full(len(array), array[0].size, np.float64)
    yield from _of_numbers(array, few=len(spec.inputs) == 1 and -1 not in tensor.dims)


def _byte_counts(array: Array) -> Array:
    rows = array.reshape(len(array), -1).tolist()
    counts = [sum([len(x if isinstance(x, bytes) else str(x).encode()) for x in r]) for r in rows]
    return np.array(counts, np.float64)


def _as_pictures(array: Array, layout: str) -> Array | None:
    """Return what looks like pictures as [rows, height, width, channels], else None."""
    shape = array.shape[1:]
    if len(shape) == 2 and min(shape) >= SMALLEST_SIDE:  # noqa: PLR2004  height and width
        return array[..., None]
    if len(shape) != 3:  # noqa: PLR2004  and channels
        return None
    first = layout == "NCHW" or (not layout and shape[0] in CHANNEL_COUNTS)
    if not layout and not first and shape[-1] not in CHANNEL_COUNTS:
        return None
    if not layout and min(shape[1:] if first else shape[:2]) < SMALLEST_SIDE:
        return None
    return array.transpose(0, 2, 3, 1) if first else array


def _to_pixels(image: ImageInput | None) -> tuple[Array | float, float]:
    """Return what a model's own input is multiplied by, per channel, and what is added."""
    if image is None:
        return 1.0, 0.0
    mean, std = np.asarray(image.mean), np.asarray(image.std)
    return std / image.scale, float(np.mean(mean) / image.scale)


def _of_pictures(
    pictures: Array, factors: Array | float, offset: float
) -> Iterator[tuple[str, Array]]:
    """Yield the signals of pictures [rows, height, width, channels], once they are pixels."""
    height, width, channels = pictures.shape[1:]
    down, across = max(1, height // GRID), max(1, width // GRID)
    weights = (np.broadcast_to(factors, channels) / channels).astype(np.float32)
    sampled = pictures[:, ::down]
    grey = _grey(sampled[:, :, ::across], weights, offset)
    beside = grey[:, :, 1:] if across == 1 else _grey(sampled[:, :, 1::across], weights, offset)
    brightness = grey.mean(axis=(1, 2))
    apart = np.abs(grey - brightness[:, None, None])
    yield "brightness", brightness
    yield "contrast", np.sqrt(np.square(apart).mean(axis=(1, 2)))
    if beside.shape[2]:
        steps = np.abs(beside - grey[:, :, : beside.shape[2]])
        yield "detail", steps.mean(axis=(1, 2))
    yield "centre_x", _centre(apart.sum(axis=1))
    yield "centre_y", _centre(apart.sum(axis=2))


def _grey(pictures: Array, weights: Array, offset: float) -> Array:
    grey: Array = pictures[..., 0].astype(np.float32) * weights[0]
    for channel in range(1, pictures.shape[-1]):
        grey += pictures[..., channel].astype(np.float32) * weights[channel]
    grey += np.float32(offset)
    return grey


def _centre(weights: Array) -> Array:
    """Return where the weights [rows, places] have their centre, 0 to 1; of none, in the middle."""
    places = np.linspace(0, 1, weights.shape[1], dtype=np.float32)
    total = weights.sum(axis=1)
    middles = (weights * places).sum(axis=1) / (total + TINY)
    return np.asarray(np.where(total > TINY, middles, 0.5))


def _of_numbers(array: Array, *, few: bool) -> Iterator[tuple[str, Array]]:
    flat = array.reshape(len(array), -1)
    numbers = flat[:, :: max(1, flat.shape[1] // NUMBERS_OF_ROW)].astype(np.float64)
    yield "mean", numbers.mean(axis=1)
    if numbers.shape[1] > 1:
        yield "spread", numbers.std(axis=1)
    if few and 1 < numbers.shape[1] <= MOST_COLUMNS:
        for column in range(numbers.shape[1]):
            yield f"column_{column}", numbers[:, column]


def output_signals(
    spec: ModelSpec, outputs: Mapping[str, Array], centre: Array | None = None
) -> Values:
    """Return the signals of answers [rows, ...] by output name; an output may be missing.

    `centre` is the mean direction of the reference's answers, for those that are vectors.
    """
    with np.errstate(all="ignore"):
        scored = scored_output(spec)
        if scored is None:
            return dict(_of_vectors(spec, outputs, centre))
        if scored.name not in outputs:
            return {}
        found = {PREDICTION: classes(spec, scored, outputs)}
        if is_float(scored):
            found |= _of_scores(spec, outputs[scored.name])
        return found


def _of_scores(spec: ModelSpec, array: Array) -> Values:
    """Return how sure answers are; classes that may be true at once have no entropy."""
    scores = array.reshape(len(array), -1).astype(np.float32)
    shares = probabilities(scores, spec.output_activation)
    found = {"confidence": shares.max(axis=1)}
    if scores.shape[1] < FEWEST_CLASSES or spec.output_activation != "sigmoid":
        found["entropy"] = -(shares * np.log(np.maximum(shares, TINY))).sum(axis=1)
    return found


def _of_vectors(
    spec: ModelSpec, outputs: Mapping[str, Array], centre: Array | None
) -> Iterator[tuple[str, Array]]:
    first = spec.outputs[0].name
    if first not in outputs or not outputs[first].size:
        return
    if spec.outputs[0].datatype == "BYTES":
        yield "output_length", _byte_counts(outputs[first])
        return
    rows = vectors(outputs[first])
    yield "output", rows.mean(axis=1)
    if rows.shape[1] > 1:
        lengths = np.linalg.norm(rows, axis=1)
        yield "norm", lengths
        if centre is not None and len(centre) == rows.shape[1]:
            yield SIMILARITY, similarity(rows, centre)


def similarity(rows: Array, centre: Array) -> Array:
    """Return the cosine of each row with a direction."""
    found: Array = (rows * centre).sum(axis=1) / (np.linalg.norm(rows, axis=1) + TINY)
    return found


def vectors(array: Array) -> Array:
    """Return an output as a vector for each row."""
    return array.reshape(len(array), -1).astype(np.float32)
