"""Samples of requests on the worker's disk, where a model's config asks for them.

    <FERRY_STATE_DIR>/samples/<model>/<version>/<milliseconds>-<number>.npz    inputs and answer
                                               <milliseconds>-<number>.png    a picture's pixels

One request a second at most; the oldest go first. Of texts only the form is written, and ids of
texts not at all, but for those that the config clears.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from shared.datatypes import Array
from shared.messages import Tensor
from shared.model_spec import ModelSpec
from worker.instance.batch_parts import DecodedRequest
from worker.job import InstanceJob
from worker.repository.config.parameters import SampleWish, sample_wish

log = logging.getLogger(__name__)

MAX_SAMPLES = 1000
LARGEST_SHARE = 0.25
"""Of the bytes of all samples, that one request may have."""
LETTER, DIGIT = re.compile(r"[^\W\d_]"), re.compile(r"\d")
MODES = {1: "L", 3: "RGB"}


class Samples:
    """One version's, written by each of its instances."""

    def __init__(self, spec: ModelSpec, directory: Path, wish: SampleWish) -> None:
        """Keep what the config wishes for in `directory`, which is made when it is needed."""
        self._directory = directory
        self._wish = wish
        names = {each.name for each in spec.inputs} if spec.text else set()
        self._left_out = (names - wish.clear) | wish.redacted
        self._numbers = count(os.getpid())

    @classmethod
    def of(cls, job: InstanceJob) -> Samples | None:
        """Return an instance's, None where none are wished for, or for names that are none."""
        wish, spec = sample_wish(job.spec.parameters), job.spec
        known = {each.name for each in (*spec.inputs, *spec.outputs)}
        if unknown := sorted((wish.clear | wish.redacted) - known):
            log.error("%s: no input or output %r: nothing is sampled", spec.key, unknown[0])
            return None
        directory = Path(job.state_dir) / "samples" / spec.name / spec.version
        return cls(spec, directory, wish) if wish.max_bytes else None

    def write(self, one: DecodedRequest, outputs: Sequence[Tensor]) -> None:
        """Write a request and its answer, and remove the oldest that are too many.

        Raises OSError.
        """
        if one.claimed.size > LARGEST_SHARE * self._wish.max_bytes:
            return
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        stem = f"{int(1000 * time.time())}-{next(self._numbers)}"
        shown = {f"input.{name}": self._shown(name, a) for name, a in one.arrays.items()}
        shown |= {f"output.{each.name}": self._shown(each.name, each.array()) for each in outputs}
        with self._opened(f"{stem}.npz") as stream:
            np.savez_compressed(stream, **shown)  # type: ignore[arg-type]
        for tensor in one.request.inputs:
            pixels = one.arrays[tensor.name]
            if tensor.pixels and tensor.name not in self._left_out and len(pixels):
                with self._opened(f"{stem}.png") as stream:
                    _picture(pixels[0]).save(stream, "PNG")
        self._make_room()

    def _opened(self, name: str) -> BinaryIO:
        """Open a file that only our user may read."""
        descriptor = os.open(self._directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        return os.fdopen(descriptor, "wb")

    def _shown(self, name: str, array: Array) -> Array:
        """Return what is written: the shape alone of what is left out, the form of texts."""
        if name in self._left_out:
            return np.array(f"left out, shape {list(array.shape)}")
        if array.dtype.kind not in "OSU":
            return array.astype(np.float32) if array.dtype.kind == "V" else array
        texts = [x.decode(errors="replace") if isinstance(x, bytes) else str(x) for x in array.flat]
        if name not in self._wish.clear:
            texts = [DIGIT.sub("0", LETTER.sub("x", text)) for text in texts]
        return np.array(texts).reshape(array.shape)

    def _make_room(self) -> None:
        """Remove the oldest files until the rest is few and small enough."""
        sizes = {}
        with os.scandir(self._directory) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # another instance makes room too
                    sizes[entry.name] = entry.stat().st_size
        total, left = sum(sizes.values()), len(sizes)
        for name in sorted(sizes):  # by their times
            if total <= self._wish.max_bytes and left <= 2 * MAX_SAMPLES:
                return
            (self._directory / name).unlink(missing_ok=True)
            total, left = total - sizes[name], left - 1


def _picture(pixels: Array) -> Image.Image:
    channels = pixels.shape[-1]
    if channels not in MODES:
        return Image.fromarray(pixels[..., 0])
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels, MODES[channels])
