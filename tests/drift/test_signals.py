"""The signals of rows and answers, of each kind of model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shared.drift.signals import input_signals, output_signals
from shared.model_spec import ImageInput, ModelSpec, TensorSpec, TextInput


def tensor(name: str, *dims: int, datatype: str = "FP32", **more: Any) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, dims=dims, **more)


def spec(*inputs: TensorSpec, output: TensorSpec | None = None, **more: Any) -> ModelSpec:
    return ModelSpec(
        name="m", version="1", platform="", max_batch_size=8, inputs=inputs,
        outputs=(output or tensor("y", 3),), **more,
    )  # fmt: skip


PHOTOS = spec(
    tensor("image", 3, 40, 40),
    image=ImageInput(
        input="image", height=40, width=40, scale=1 / 255, mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.4),
    ),
)  # fmt: skip


def photos(count: int = 5, side: int = 40) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, side, side, 3)).astype(np.uint8)


def test_the_brightness_and_the_middle_of_a_known_picture() -> None:
    pixels = np.zeros((1, 40, 40, 3), np.uint8)
    pixels[0, :, 30:] = 200

    found = input_signals(PHOTOS, {"image": pixels}, {"image"})

    assert found["brightness"] == pytest.approx(50.0)
    assert found["contrast"] == pytest.approx(np.sqrt(150**2 / 4 + 50**2 * 3 / 4), rel=1e-4)
    assert found["detail"] == pytest.approx(200 / 39, rel=1e-4)
    assert found["centre_y"] == pytest.approx(0.5)
    assert found["centre_x"] > 0.6


def test_a_picture_sent_as_the_models_own_input_counts_as_its_pixels() -> None:
    pixels, image = photos(), PHOTOS.image
    assert image is not None
    scaled = (pixels * image.scale - np.array(image.mean)) / np.array(image.std)
    own = scaled.transpose(0, 3, 1, 2).astype(np.float32)

    sent = input_signals(PHOTOS, {"image": own}, ())
    for name, values in input_signals(PHOTOS, {"image": pixels}, {"image"}).items():
        assert sent[name] == pytest.approx(values, rel=1e-3), name


def test_rows_together_have_the_signals_of_each_alone() -> None:
    pixels = photos(4, 224)
    together = input_signals(PHOTOS, {"image": pixels}, {"image"})

    for name, values in together.items():
        alone = [
            input_signals(PHOTOS, {"image": each[None]}, {"image"})[name][0] for each in pixels
        ]
        assert values == pytest.approx(np.array(alone), rel=1e-5)


@pytest.mark.parametrize("dims", [(28, 28), (1, 28, 28), (28, 28, 3)])
def test_what_looks_like_a_picture_is_one(dims: tuple[int, ...]) -> None:
    found = input_signals(spec(tensor("x", *dims)), {"x": np.ones((2, *dims), np.float32)}, ())

    assert found["brightness"] == pytest.approx(1.0)


def test_columns_are_looked_at_one_by_one_while_they_are_few() -> None:
    rows = np.arange(8, dtype=np.float32).reshape(2, 4)
    few = input_signals(spec(tensor("x", 4)), {"x": rows}, ())
    many = input_signals(spec(tensor("x", 99)), {"x": np.ones((2, 99))}, ())

    assert set(few) == {"mean", "spread", "column_0", "column_1", "column_2", "column_3"}
    assert few["column_2"].tolist() == [2.0, 6.0] and few["mean"].tolist() == [1.5, 5.5]
    assert set(many) == {"mean", "spread"}


def test_several_inputs_are_told_apart_and_may_be_missing() -> None:
    people = spec(tensor("age", 1), tensor("name", 1, datatype="BYTES", optional=True))
    names = np.array([[b"Ada"], ["Jürgen"]], object)

    both = input_signals(people, {"age": np.array([[3.0], [4.0]]), "name": names}, ())
    assert both["mean of age"].tolist() == [3.0, 4.0]
    assert both["length of name"].tolist() == [3.0, 7.0]
    assert set(input_signals(people, {"age": np.ones((2, 1))}, ())) == {"mean of age"}


def test_padding_is_no_part_of_a_text() -> None:
    ids = tensor("input_ids", -1, datatype="INT64", ragged=True)
    mask = tensor("attention_mask", -1, datatype="INT64", ragged=True)
    text = TextInput(tokenizer="d", max_length=99)
    rows = np.array([[5, 6, 7, 0], [8, 0, 0, 0]])

    masked = spec(ids, mask, text=text)
    found = input_signals(masked, {"input_ids": rows, "attention_mask": rows > 0}, ())
    assert found["tokens"].tolist() == [3, 1]
    found = input_signals(spec(ids, text=text), {"input_ids": rows}, ())
    assert found["tokens"].tolist() == [3, 1]


def test_logits_and_probabilities_of_one_answer_say_the_same() -> None:
    logits = np.array([[1.0, 3.0, 0.0], [5.0, 0.0, 0.0]], np.float32)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

    first = output_signals(spec(tensor("x", 1)), {"y": logits})
    second = output_signals(spec(tensor("x", 1), output_activation="none"), {"y": shares})

    assert first["prediction"].tolist() == [1, 0]
    assert first["confidence"] == pytest.approx(shares.max(axis=1))
    for name in first:
        assert first[name] == pytest.approx(second[name], rel=1e-5)


def test_a_single_score_is_that_of_two_classes() -> None:
    decides = spec(
        tensor("x", 1), output=tensor("y", 1), output_activation="sigmoid",
        parameters={"output_activation": "sigmoid"},
    )  # fmt: skip
    found = output_signals(decides, {"y": np.array([[0.0], [-9.0], [9.0]], np.float32)})

    assert found["prediction"].tolist()[1:] == [0, 1]
    assert found["confidence"] == pytest.approx([0.5, 0.9999, 0.9999], abs=1e-3)


def test_numbers_vectors_and_texts_are_answers_too() -> None:
    x = tensor("x", 1)
    number = output_signals(spec(x, output=tensor("y", 1)), {"y": np.array([[2.5], [3.5]])})
    vector = spec(x, output=tensor("y", 2), parameters={"output_kind": "embedding"})
    found = output_signals(vector, {"y": np.array([[3.0, 4.0], [0.0, 2.0]])}, np.array([0.0, 1.0]))
    said = spec(x, output=tensor("y", 1, datatype="BYTES"))

    assert number["output"].tolist() == [2.5, 3.5] and set(number) == {"output"}
    assert found["norm"].tolist() == [5.0, 2.0]
    assert found["similarity"] == pytest.approx([0.8, 1.0])
    texts = output_signals(said, {"y": np.array([[b"four"]], object)})
    assert texts["output_length"].tolist() == [4.0]
    assert output_signals(vector, {}) == {}


def test_what_is_not_finite_raises_nothing() -> None:
    odd = np.array([[np.nan, np.inf, -np.inf]], np.float32)

    assert set(output_signals(spec(tensor("x", 3)), {"y": odd})) >= {"prediction", "confidence"}
    assert np.isnan(input_signals(spec(tensor("x", 3)), {"x": odd}, ())["mean"]).all()
