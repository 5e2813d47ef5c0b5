"""The sample `sentences` gives the vectors that its encoder is published with."""

import io
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from samples.sentences import make
from samples.sentences.model_directory import SentenceEmbedder
from samples.sentiment.weights import load_pretrained_model

Embed = Callable[[list[str]], NDArray[np.float32]]


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory, said = tmp_path_factory.mktemp("repository") / "sentences", io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        make(directory)
    assert not said.getvalue()
    return directory


@pytest.fixture(scope="module")
def tokenizer(model_directory: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(model_directory / "tokenizer.json"))
    assert tokenizer.padding is None and tokenizer.truncation is None  # the server does both
    tokenizer.enable_padding()
    return tokenizer


@pytest.fixture(scope="module")
def embed(model_directory: Path, tokenizer: Tokenizer) -> Embed:
    session = onnxruntime.InferenceSession(str(model_directory / "1" / "model.onnx"))

    def run(texts: list[str]) -> NDArray[np.float32]:
        rows = tokenizer.encode_batch(texts)
        feed = {
            "input_ids": np.array([row.ids for row in rows], np.int64),
            "attention_mask": np.array([row.attention_mask for row in rows], np.int64),
        }
        found: NDArray[np.float32] = session.run(["sentence_embedding"], feed)[0]
        return found

    return run


def test_similarities_are_those_that_sentence_transformers_publishes(embed: Embed) -> None:
    """The example on the first page of its manual, https://sbert.net."""
    found = embed(
        ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    )

    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(3), abs=1e-6)
    published = [[1.0000, 0.6660, 0.1046], [0.6660, 1.0000, 0.1411], [0.1046, 0.1411, 1.0000]]
    assert np.abs(found @ found.T - published).max() < 1e-4


@pytest.mark.parametrize("shape", [(1, 3), (2, 17), (9, 80)])
def test_the_file_answers_as_the_network_in_every_size(
    embed: Embed, tokenizer: Tokenizer, shape: tuple[int, int]
) -> None:
    rows, words = shape[0], shape[1] - 2
    texts = [" ".join(["word"] * max(1, words - row)) for row in range(rows)]
    encoded = tokenizer.encode_batch(texts)
    ids = torch.tensor([row.ids for row in encoded])
    mask = torch.tensor([row.attention_mask for row in encoded])
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        network = SentenceEmbedder(load_pretrained_model().encoder).eval()
        wanted = network(ids, mask).numpy()

    assert ids.shape == shape
    assert np.abs(embed(texts) - wanted).max() < 1e-5


def test_the_model_is_one_file(model_directory: Path) -> None:
    assert [file.name for file in (model_directory / "1").iterdir()] == ["model.onnx"]
