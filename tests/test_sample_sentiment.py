"""The sentiment sample reads sentences it was never trained on, and padding does not sway it."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from samples.sentiment import train

FOLDER = Path(train.__file__).parent
LABELS = ["negative", "positive"]
REQUIRED_ACCURACY = 0.88
NEAR_DUPLICATE = 0.8  # share of common words
Classify = Callable[[list[list[int]], int], NDArray[np.float32]]


@pytest.fixture(scope="module")
def model_directory(sample_models: Path) -> Path:
    """The sample as `make` left it in a model repository."""
    return sample_models / "sentiment"


@pytest.fixture(scope="module")
def tokenizer(model_directory: Path) -> Tokenizer:
    """The tokenizer the sample ships."""
    return Tokenizer.from_file(str(model_directory / "tokenizer.json"))


@pytest.fixture(scope="module")
def classify(model_directory: Path) -> Classify:
    """A function from rows of token ids, and a length to pad them to, to logits [rows, 2]."""
    session = onnxruntime.InferenceSession(str(model_directory / "1" / "model.onnx"))

    def run(rows: list[list[int]], length: int) -> NDArray[np.float32]:
        input_ids = np.zeros((len(rows), length), dtype=np.int64)
        attention_mask = np.zeros((len(rows), length), dtype=np.int64)
        for index, row in enumerate(rows):
            input_ids[index, : len(row)] = row
            attention_mask[index, : len(row)] = 1
        feed = {"input_ids": input_ids, "attention_mask": attention_mask}
        logits: NDArray[np.float32] = session.run(["logits"], feed)[0]
        return logits

    return run


def _measure_held_out_accuracy(classify: Classify, tokenizer: Tokenizer) -> float:
    pairs = train.read_sentences(FOLDER / "held_out.tsv")
    rows = [tokenizer.encode(sentence).ids for _, sentence in pairs]
    answers = classify(rows, max(map(len, rows))).argmax(axis=1)
    right = [LABELS[answer] == label for answer, (label, _) in zip(answers, pairs, strict=True)]
    return sum(right) / len(right)


def test_the_held_out_sentences_are_read_as_well_as_required(
    classify: Classify, tokenizer: Tokenizer
) -> None:
    assert _measure_held_out_accuracy(classify, tokenizer) >= REQUIRED_ACCURACY


def test_the_held_out_accuracy_is_the_one_the_docstring_states(
    classify: Classify, tokenizer: Tokenizer
) -> None:
    stated = re.search(r"Held-out accuracy: ([\d.]+) %", str(train.__doc__))
    assert stated is not None
    accuracy = 100 * _measure_held_out_accuracy(classify, tokenizer)
    # Other processors and thread counts add up floats in another order, and training magnifies it.
    assert accuracy == pytest.approx(float(stated.group(1)), abs=4.0)


def test_padding_does_not_change_the_logits(classify: Classify, tokenizer: Tokenizer) -> None:
    rows = [tokenizer.encode(text).ids for text in ("Not bad at all.", "It fell apart in a week.")]
    together = classify(rows, 128)
    for index, row in enumerate(rows):
        assert np.abs(classify([row], len(row))[0] - together[index]).max() <= 1e-4


def test_the_tokenizer_leaves_padding_and_truncation_to_the_server(model_directory: Path) -> None:
    written = json.loads((model_directory / "tokenizer.json").read_text(encoding="utf-8"))
    assert written["padding"] is None
    assert written["truncation"] is None


def test_the_model_is_one_file_under_a_hundred_megabytes(model_directory: Path) -> None:
    files = list((model_directory / "1").iterdir())
    assert [file.name for file in files] == ["model.onnx"]
    assert files[0].stat().st_size < 100_000_000


def test_both_sets_are_balanced() -> None:
    for name in ("training.tsv", "held_out.tsv"):
        labels = [label for label, _ in train.read_sentences(FOLDER / name)]
        assert 0.45 <= labels.count("positive") / len(labels) <= 0.55


def test_no_held_out_sentence_is_nearly_a_training_sentence() -> None:
    training = [_words(sentence) for _, sentence in train.read_sentences(FOLDER / "training.tsv")]
    for _, sentence in train.read_sentences(FOLDER / "held_out.tsv"):
        words = _words(sentence)
        overlap = max(len(words & other) / len(words | other) for other in training)
        assert overlap <= NEAR_DUPLICATE, sentence


def _words(sentence: str) -> set[str]:
    return set(re.findall(r"[a-z']+", sentence.lower()))
