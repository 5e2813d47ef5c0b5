"""Texts of different length get the answers that they get alone, whatever pads them and where."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from answers import answer
from ferry_processes import running_worker
from flask import Flask
from stand_ins import torchscript
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from waiting import wait_until

from api.app import create_app
from shared.registry.registry import Registry
from shared.registry.repository_index import repository_index
from shared.settings import Settings
from shared.wire.client import connect

PAD = 1
WORDS = {"[UNK]": 0, "<pad>": PAD, "a": 2, "b": 3, "c": 4, "d": 5}
TEXTS = ["a", "b c", "d d d d d d d", "c a b", "b a d c a b d c a b d", "d"]


class OwnMask(torch.nn.Module):
    """The mean of the ids that are no padding."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        own = input_ids != 1
        return ((input_ids * own).sum(1, keepdim=True) / own.sum(1, keepdim=True)).float()


class LastToken(torch.nn.Module):
    """The last id, as models take it whose texts are padded on the left."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return (input_ids[:, -1:] * attention_mask[:, -1:]).float()


class Types(torch.nn.Module):
    """The mean of the ids whose type is not that of padding, 3."""

    def forward(self, input_ids: torch.Tensor, token_type_ids: torch.Tensor) -> torch.Tensor:
        own = token_type_ids != 3
        return ((input_ids * own).sum(1, keepdim=True) / own.sum(1, keepdim=True)).float()


class Plain(torch.nn.Module):
    """The mean of all ids, of the padding too."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return input_ids.float().mean(1, keepdim=True)


class Eights(torch.nn.Module):
    """The sum of the ids of texts that come in eights, as some attention wants them."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        assert input_ids.size(1) % 8 == 0, "a multiple of 8"
        return (input_ids * attention_mask).sum(1, keepdim=True).float()


def ids(text: str) -> list[int]:
    return [WORDS[word] for word in text.split()]


def mean(text: str) -> float:
    return sum(ids(text)) / len(ids(text))


MODELS: dict[str, tuple[torch.nn.Module, list[str], dict[str, Any]]] = {
    "own_mask": (OwnMask(), [], {"pad_id": PAD}),
    "last": (LastToken(), ["attention_mask"], {"pad_id": PAD, "direction": "left"}),
    "types": (Types(), ["token_type_ids"], {"pad_id": PAD, "pad_type_id": 3}),
    "plain": (Plain(), [], {"pad_id": PAD}),
    "eights": (Eights(), ["attention_mask"], {"pad_id": PAD, "pad_to_multiple_of": 8}),
}
RIGHT = {
    "own_mask": mean,
    "last": lambda text: ids(text)[-1],
    "types": mean,
    "plain": mean,
    "eights": lambda text: sum(ids(text)),
}


def add(repository: Path, name: str) -> None:
    module, more, padding = MODELS[name]
    inputs = ", ".join(
        f'{{ name: "{each}" data_type: TYPE_INT64 dims: [-1] allow_ragged_batch: true }}'
        for each in ["input_ids", *more]
    )
    torchscript(
        repository,
        name,
        module,
        f"max_batch_size: 16 input [ {inputs} ]"
        'output [ { name: "score" data_type: TYPE_FP32 dims: [1] } ]'
        "dynamic_batching { max_queue_delay_microseconds: 20000 }"
        'parameters { key: "input_kind" value { string_value: "text" } }',
    )
    words = Tokenizer(WordLevel(WORDS, "[UNK]"))
    words.pre_tokenizer = Whitespace()
    words.enable_padding(pad_token="<pad>", **padding)
    words.save(str(repository / name / "tokenizer.json"))


@pytest.fixture(scope="module")
def app(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    models = tmp_path_factory.mktemp("models")
    for name in MODELS:
        add(models, name)
    settings = Settings(redis_url=redis_url, key_prefix="padded", models=str(models))
    with running_worker(settings):
        yield create_app(settings)


def asked(app: Flask, model: str, instances: list[str]) -> tuple[list[float], int]:
    """Return the scores of one request's texts, and the rows of its pass."""
    body = answer(
        app.test_client().post(f"/v1/models/{model}:predict", json={"instances": instances})
    )
    return [row[0] for row in body["predictions"]], body["timings"]["batch_size"]


@pytest.mark.parametrize("model", MODELS)
def test_company_changes_no_answer(app: Flask, model: str) -> None:
    texts = TEXTS * 8
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda text: asked(app, model, [text]), texts))

    assert [scores[0] for scores, _ in answers] == pytest.approx([RIGHT[model](t) for t in texts])
    assert max(rows for _, rows in answers) > 1


@pytest.mark.parametrize("model", sorted(MODELS.keys() - {"plain"}))
def test_nor_do_the_other_texts_of_a_request(app: Flask, model: str) -> None:
    scores, _ = asked(app, model, TEXTS)

    assert scores == pytest.approx([RIGHT[model](text) for text in TEXTS])


def test_the_model_that_padding_changes_is_named_with_the_reason(app: Flask) -> None:
    settings: Settings = app.extensions["ferry"].settings
    registry = Registry(connect(settings.redis_url), settings.key_prefix)
    wait_until(lambda: registry.snapshot().all_ready(), 30, "every model is ready")

    reasons = {entry["name"]: entry["reason"] for entry in repository_index(registry.snapshot())}

    assert {name for name, reason in reasons.items() if reason} == {"plain"}
    assert "differently beside a longer one" in reasons["plain"]
