"""Pictures become exactly the input that a model declares, or its config is refused when read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from loaded import own_imports
from scripted_models import save_scripted

from shared.datatypes import NUMPY_TYPES, Array
from shared.errors import BadModel
from worker.devices import Placement
from worker.instance.process import load_backend
from worker.job import InstanceJob
from worker.repository.model_config import ModelConfig, read_config

PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(1, 2, 3, 3) * 15  # up to 255
PLANES = PIXELS.transpose(0, 3, 1, 2)
BACK = "class Model:\n    def forward(self, inputs):\n        return {'y': inputs['x']}\n"


def config(
    dims: str,
    datatype: str = "FP32",
    max_batch_size: int = 8,
    form: str = "",
    seen: str = "",
    more: str = "",
    **parameters: str,
) -> str:
    """Describe a model that gives back the picture it gets; `seen` is the shape within."""
    said = {"input_kind": "image", **parameters}
    inside = f"reshape {{ shape: {seen} }}" if seen else ""
    lines = [
        f"max_batch_size: {max_batch_size}",
        f'input [ {{ name: "x" data_type: TYPE_{datatype} dims: {dims} {form} {inside} }} ]',
        f'output [ {{ name: "y" data_type: TYPE_{datatype} dims: {seen or dims} }} ]',
        *(
            f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
            for key, value in said.items()
        ),
        more,
    ]
    return "\n".join(lines)


def read(directory: Path, text: str, backend: str = "python") -> ModelConfig:
    file = directory / "m" / "1" / ("model.pt" if backend == "pytorch" else "model.py")
    file.parent.mkdir(parents=True)
    if backend == "pytorch":
        save_scripted(torch.nn.Identity(), file)
    else:
        file.write_text(BACK)
    (directory / "m" / "config.pbtxt").write_text(f'backend: "{backend}"\n{text}')
    return read_config(directory / "m" / "config.pbtxt", "1")


def given(directory: Path, text: str, backend: str) -> Array:
    """Return the tensor that the model gets for PIXELS."""
    found = read(directory, text, backend)
    file = directory / "m" / "1" / found.filename
    job = InstanceJob(
        "i", found.spec, found.backend, file, Placement("cpu"), "redis://", "x", 1.0, "INFO"
    )
    with own_imports():
        (array,) = load_backend(job).forward({"x": PIXELS}, frozenset({"x"})).values()
    return array


@pytest.mark.parametrize("backend", ["pytorch", "python"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (config("[3, 2, 3]"), PLANES),
        (config("[2, 3, 3]", form="format: FORMAT_NHWC"), PIXELS),
        (config("[2, 3, 3]"), PIXELS),  # the channels stand at the end
        (config("[3, 2, 3]", max_batch_size=0), PLANES[0]),
        (config("[2, 3, 3]", max_batch_size=0), PIXELS[0]),
        (config("[1, 3, 2, 3]", max_batch_size=0), PLANES),
        (config("[-1, 3, 2, 3]", max_batch_size=0), PLANES),
        (config("[3, 2, 3]", seen="[1, 3, 2, 3]"), PLANES[:, None]),
        (config("[3, 2, 3]", seen="[18]"), PLANES.reshape(1, 18)),
    ],
)
def test_the_shape_is_the_declared_one(
    tmp_path: Path, backend: str, text: str, expected: Array
) -> None:
    found = given(tmp_path, text, backend)

    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("datatype", ["FP32", "FP16", "BF16", "FP64", "UINT8", "INT32", "UINT16"])
def test_the_datatype_is_the_declared_one(tmp_path: Path, datatype: str) -> None:
    found = given(tmp_path, config("[3, 2, 3]", datatype), "python")

    assert found.dtype == NUMPY_TYPES[datatype]
    np.testing.assert_array_equal(found.astype(np.float64), PLANES)


def test_whole_numbers_are_rounded(tmp_path: Path) -> None:
    shifted = config("[3, 2, 3]", "INT8", image_mean="127.6")

    found = given(tmp_path, shifted, "pytorch")

    np.testing.assert_array_equal(found, np.rint(PLANES - 127.6).astype(np.int8))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (config("[3, 2, 3]", "INT8"), "make 0 to 255 of pixels, INT8 holds -128 to 127"),
        (config("[3, 2, 3]", "UINT8", image_mean="128"), "make -128 to 127 of pixels, UINT8 holds"),
        (config("[3, 2, 3]", "UINT8", image_scale="0.0039"), "of which few are left as the whole"),
        (config("[3, 2, 3]", "INT8", image_mean="0,0,9", image_std="58,3,3"), "of which few are"),
        (config("[3, 2, 3]", "FP16", image_scale="300"), "0 to 76500 of pixels, more than FP16"),
        (config("[3, 2, 3]", image_scale="nan"), "make nan to nan of pixels"),
        (config("[3, 2, 3]", "STRING"), "input 'x': BYTES holds no colours"),
        (config("[3, 2, 3]", "BOOL"), "input 'x': BOOL holds no colours"),
        (config("[1, 3, 2, 3]"), r"dims \[1, 3, 2, 3\], a picture has CHW of fixed size"),
        (config("[2, 3, 2, 3]", max_batch_size=0), "a picture has CHW of fixed size"),
        (config("[3]"), r"dims \[3\], a picture has CHW of fixed size"),
        (config("[4, 2, 4]"), "image_channels 'RGB' does not fit 4 channels"),
    ],
)
def test_an_input_that_no_picture_can_be_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadModel, match=said):
        read(tmp_path, text)
