"""What a picture becomes on its way to the model equals the training pipeline's arithmetic to 1e-4.

The reference is torchvision's Resize(256), CenterCrop(224), ToTensor, Normalize, written out again
below (torchvision v0.20, transforms/functional.py), on scikit-learn's two photographs.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from answers import answer
from flask.testing import FlaskClient
from PIL import Image
from sklearn.datasets import load_sample_images

from shared.datatypes import Array
from shared.inputs.pictures import picture_batch
from shared.model_spec import ImageInput, ModelSpec
from worker.backends.preprocessing import Normaliser
from worker.repository.model_config import read_config

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
PHOTOS = [Image.fromarray(pixels) for pixels in load_sample_images().images]
SIZES = [
    (640, 427),
    (427, 640),
    (1600, 1068),
    (2560, 1708),
    (49, 98),
    (98, 49),
    (256, 256),
    (90, 7),
]


def reference(picture: Image.Image) -> Array:
    """Return float32 [1, 3, 224, 224] as torchvision would for a PIL picture."""
    width, height = picture.size
    short, long = min(width, height), max(width, height)
    new_long = int(256 * long / short)
    size = (256, new_long) if width <= height else (new_long, 256)
    resized = picture.convert("RGB").resize(size, Image.Resampling.BILINEAR)
    top = round((size[1] - 224) / 2.0)
    left = round((size[0] - 224) / 2.0)
    pixels = np.asarray(resized, np.float32)[top : top + 224, left : left + 224] / 255
    normal = (pixels - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return normal.transpose(2, 0, 1)[None].astype(np.float32)


def encoded(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": 92} if kind == "JPEG" else {}))
    return buffer.getvalue()


def resnet(sample_models: Path) -> ModelSpec:
    return read_config(sample_models / "resnet18" / "config.pbtxt", "1").spec


def prepared(data: bytes, spec: ModelSpec) -> Array:
    """Return what reaches the model: decoded as the API does, normalised as the worker does."""
    assert spec.image is not None
    normalise = Normaliser(spec.image, torch.device("cpu"), torch.float32)
    # A copy, because torch warns of arrays that nobody may write to.
    return np.asarray(normalise(picture_batch([data], spec).array().copy()))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("photo", [0, 1])
def test_a_photo_reaches_the_model_as_in_training(
    sample_models: Path, photo: int, size: tuple[int, int], kind: str
) -> None:
    data = encoded(PHOTOS[photo].resize(size), kind)

    found = prepared(data, resnet(sample_models))

    np.testing.assert_allclose(found, reference(Image.open(io.BytesIO(data))), atol=1e-4, rtol=0)


def test_the_reference_sees_a_difference_of_one_grey_level(sample_models: Path) -> None:
    brighter = Image.fromarray(np.minimum(np.asarray(PHOTOS[0]), 254) + np.uint8(1))

    found = prepared(encoded(brighter, "PNG"), resnet(sample_models))

    assert np.abs(found - reference(PHOTOS[0])).mean() > 1e-2


def test_a_known_pixel_has_the_value_worked_out_by_hand(sample_models: Path) -> None:
    grey = encoded(Image.new("RGB", (300, 300), (51, 102, 204)), "PNG")

    found = prepared(grey, resnet(sample_models))

    # (0.2 - 0.485) / 0.229, (0.4 - 0.456) / 0.224, (0.8 - 0.406) / 0.225
    assert found[0, :, 100, 100] == pytest.approx([-1.244541, -0.25, 1.751111], abs=1e-5)


@pytest.mark.parametrize(("layout", "shape"), [("NCHW", (2, 3, 4, 6)), ("NHWC", (2, 4, 6, 3))])
def test_both_layouts_are_made(layout: Any, shape: tuple[int, ...]) -> None:
    image = ImageInput(
        input="x", height=4, width=6, layout=layout, mean=(1.0, 2.0, 3.0), std=(2.0, 4.0, 8.0)
    )
    pixels = np.arange(144, dtype=np.uint8).reshape(2, 4, 6, 3)

    found = np.asarray(Normaliser(image, torch.device("cpu"), torch.float32)(pixels))

    expected = (pixels - np.array([1.0, 2.0, 3.0])) / np.array([2.0, 4.0, 8.0])
    assert found.shape == shape
    np.testing.assert_allclose(
        found, expected if layout == "NHWC" else expected.transpose(0, 3, 1, 2), atol=1e-6
    )


# Through the API, against the model itself.


@pytest.fixture(scope="module")
def network(sample_models: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        load: Any = torch.jit.load
        return load(sample_models / "resnet18" / "1" / "model.pt").eval()


def softmax(logits: Array) -> Array:
    powers = np.exp(logits.astype(np.float64) - logits.max())
    return np.asarray(powers / powers.sum())


def run(network: Any, picture: Image.Image) -> Array:
    with torch.inference_mode():
        return np.asarray(network(torch.from_numpy(reference(picture)))[0])


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("photo", [0, 1])
def test_the_api_answers_what_the_model_says_of_the_photo(
    client: FlaskClient, network: Any, photo: int, kind: str
) -> None:
    data = encoded(PHOTOS[photo], kind)

    body = answer(client.post("/predict/resnet18?top_k=1000", data=data))

    confidences = np.zeros(1000)
    for entry in body["top_k"]:
        confidences[entry["class"]] = entry["confidence"]
    expected = softmax(run(network, Image.open(io.BytesIO(data))))
    np.testing.assert_allclose(confidences, expected, atol=1e-4, rtol=0)
    assert body["class"] == int(expected.argmax())


def test_a_prepared_tensor_through_v2_gets_the_models_own_logits(
    client: FlaskClient, network: Any
) -> None:
    tensor = reference(PHOTOS[0])
    body = {
        "inputs": [
            {
                "name": "input",
                "shape": list(tensor.shape),
                "datatype": "FP32",
                "data": tensor.ravel().tolist(),
            }
        ]
    }

    output = answer(client.post("/v2/models/resnet18/infer", json=body))["outputs"][0]

    np.testing.assert_allclose(output["data"], run(network, PHOTOS[0]), atol=1e-4, rtol=1e-4)


def test_photos_sent_together_get_the_answers_they_get_alone(client: FlaskClient) -> None:
    small = [photo.resize((320, 214)) for photo in PHOTOS]
    files = [encoded(small[index % 2].rotate(10 * index), "JPEG") for index in range(4)]
    parts = [(io.BytesIO(data), "photo.png") for data in files]

    body = answer(client.post("/predict/resnet18?top_k=5", data={"file": parts}))

    for together, data in zip(body["predictions"], files, strict=True):
        alone = answer(client.post("/predict/resnet18?top_k=5", data=data))
        assert together["class"] == alone["class"]
        assert together["confidence"] == pytest.approx(alone["confidence"], abs=1e-4)
