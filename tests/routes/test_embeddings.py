"""POST /v1/embeddings by the client `openai` as it comes, over real servers; and bulk by file."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from ferry_processes import free_port, running_gunicorn, running_worker
from openai.types import CreateEmbeddingResponse
from tokenizers import Tokenizer

from ferry.commands.samples import make_samples
from jobs.bulk.bulk import Bulk, predict
from shared.datatypes import Array
from shared.settings import Settings
from shared.wire.client import connect

TEXTS = ["A cat sat on the mat.", "Ein Hund läuft 🐕", "stocks fell sharply on Monday"]
ROUTE = "/v1/embeddings"
LIMIT = 2**20

WITNESS = """
import os
import time

import numpy as np


class Model:
    def forward(self, inputs):
        texts = [each.decode() for each in inputs["text"].reshape(-1)]
        time.sleep(0.01)
        return {"seen": np.array([[int(t), len(texts), os.getpid()] for t in texts], np.float32)}
"""
CONFIG = """
backend: "python" max_batch_size: 16
input [ {{ name: "text" data_type: TYPE_STRING dims: [1] }} ]
{outputs}
instance_group [ {{ count: {count} kind: KIND_CPU }} ]
"""


def add_python(repository: Path, name: str, *outputs: str, count: int = 1) -> None:
    """Serve a model that answers each text with its number, its batch's rows and its process."""
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "1" / "model.py").write_text(WITNESS)
    config = CONFIG.format(outputs="".join(f"output [ {each} ]\n" for each in outputs), count=count)
    (repository / name / "config.pbtxt").write_text(config)


@pytest.fixture(scope="module")
def served_models(
    redis_url: str, sample_models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Settings]:
    """Settings of real servers of `sentences`, `sentiment`, `tiny`, and models of strings."""
    make_samples(["sentences"], sample_models)
    repository = tmp_path_factory.mktemp("models")
    for name in ("sentences", "sentiment", "tiny"):
        (repository / name).symlink_to(sample_models / name)
    seen = 'name: "seen" data_type: TYPE_FP32 dims: [3]'
    add_python(repository, "witness", f"{{ {seen} }}", count=2)
    settings = Settings(
        redis_url=redis_url, key_prefix="embeddings", models=str(repository), port=free_port(),
        max_body_bytes=LIMIT,
    )  # fmt: skip
    with running_worker(settings), running_gunicorn(settings):
        yield settings


@pytest.fixture(scope="module")
def client(served_models: Settings) -> Iterator[openai.OpenAI]:
    address = f"http://127.0.0.1:{served_models.port}/v1"
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def tokenizer(sample_models: Path, served_models: Settings) -> Tokenizer:
    return Tokenizer.from_file(str(sample_models / "sentences" / "tokenizer.json"))


def vectors(answer: CreateEmbeddingResponse) -> Array:
    assert [each.index for each in answer.data] == list(range(len(answer.data)))
    return np.array([each.embedding for each in answer.data], np.float32)


def ask(settings: Settings, body: bytes, **headers: str) -> tuple[int, Any]:
    """Post a body as it is; return the status and the answer."""
    connection = HTTPConnection("127.0.0.1", settings.port, timeout=60)
    connection.request("POST", ROUTE, body, headers)
    response = connection.getresponse()
    found = response.status, json.loads(response.read())
    connection.close()
    return found


def body(text: Any, **more: Any) -> bytes:
    return json.dumps({"model": "sentences", "input": text, **more}).encode()


def test_the_client_gets_a_vector_of_length_one_for_each_text_in_order(
    client: openai.OpenAI,
) -> None:
    answer = client.embeddings.create(model="sentences", input=TEXTS)

    found = vectors(answer)
    assert found.shape == (3, 384)
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(3), abs=1e-6)
    assert (answer.object, answer.model) == ("list", "sentences")
    each = [vectors(client.embeddings.create(model="sentences", input=text)) for text in TEXTS]
    assert np.abs(np.concatenate(each) - found).max() < 1e-5


def test_numbers_and_base64_are_the_same_float32(served_models: Settings) -> None:
    """The client asks for base64 unless told otherwise; both forms hold the same bits."""
    _, plain = ask(served_models, body(TEXTS[0]))
    _, packed = ask(served_models, body(TEXTS[0], encoding_format="base64"))

    numbers = np.array(plain["data"][0]["embedding"], np.float32)
    assert base64.b64decode(packed["data"][0]["embedding"]) == numbers.astype("<f4").tobytes()


def test_token_ids_are_taken_as_they_are_and_counted(
    client: openai.OpenAI, tokenizer: Tokenizer
) -> None:
    ids = [tokenizer.encode(text).ids for text in TEXTS]
    by_text = client.embeddings.create(model="sentences", input=TEXTS)

    one = client.embeddings.create(model="sentences", input=ids[0])
    several = client.embeddings.create(model="sentences", input=ids)

    assert np.abs(vectors(several) - vectors(by_text)).max() < 1e-6
    assert np.abs(vectors(one) - vectors(by_text)[:1]).max() < 1e-5
    count = sum(map(len, ids))
    assert several.usage.prompt_tokens == by_text.usage.total_tokens == count
    assert one.usage.prompt_tokens == len(ids[0])


def test_dimensions_cut_vectors_and_make_them_one_long_again(client: openai.OpenAI) -> None:
    whole = vectors(client.embeddings.create(model="sentences", input=TEXTS))

    cut = vectors(client.embeddings.create(model="sentences", input=TEXTS, dimensions=48))

    wanted = whole[:, :48] / np.linalg.norm(whole[:, :48], axis=1, keepdims=True)
    assert np.abs(cut - wanted).max() < 1e-6
    same = vectors(client.embeddings.create(model="sentences", input=TEXTS, dimensions=384))
    assert (same == whole).all()


def test_a_text_that_is_too_long_is_cut_as_the_model_says(
    client: openai.OpenAI, tokenizer: Tokenizer
) -> None:
    answer = client.embeddings.create(model="sentences", input="word " * 5000, user="me")
    ids = client.embeddings.create(model="sentences", input=[1012] * 5000)

    assert answer.usage.prompt_tokens == ids.usage.prompt_tokens == 256


def test_a_request_of_2048_travels_in_full_batches_over_all_instances_beside_others(
    client: openai.OpenAI,
) -> None:
    texts = [f"{number:06d}" for number in range(2048)]
    with ThreadPoolExecutor(1) as pool:
        many = pool.submit(client.embeddings.create, model="witness", input=texts)
        beside = []
        while not many.done():
            beside.append(vectors(client.embeddings.create(model="witness", input="7"))[0].tolist())

        found = vectors(many.result())

    assert found[:, 0].tolist() == list(range(2048))
    assert np.median(found[:, 1]) == 16
    assert len(set(found[:, 2].tolist())) == 2
    assert {each[0] for each in beside} == {7.0}
    assert max(each[1] for each in beside) > 1  # it shared a batch with some of the many
    assert many.result().usage.prompt_tokens == 0  # who takes strings counts no tokens


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "empty text": ({"input": ""}, "input", "text 0 is empty"),
    "blank text": ({"input": ["a", " \n"]}, "input", "text 1 is empty"),
    "no texts": ({"input": []}, "input", "an empty list"),
    "no input": ({"input": None}, "input", "not null"),
    "too many": ({"input": ["a"] * 2049}, "input", "2049 texts, at most 2048"),
    "mixed": ({"input": ["a", 1]}, "input", "a number and a string"),
    "mixed lists": ({"input": [[101], "a"]}, "input", "a list and a string"),
    "mixed rows": ({"input": [[101], [101, "a"]]}, "input", 'text 1 must be token ids'),
    "booleans": ({"input": [True]}, "input", "a boolean"),
    "a boolean id": ({"input": [[101], [True]]}, "input", "not true"),
    "floats": ({"input": [1.0]}, "input", "a number"),
    "no ids": ({"input": [[101], []]}, "input", "text 1 is empty"),
    "an object": ({"input": {"a": 1}}, "input", "an object"),
    "deep": ({"input": [[[101]]]}, "input", "not a list"),
    "strange id": ({"input": [101, 30522]}, "input", "30522 is no token id"),
    "negative id": ({"input": [[101], [-1]]}, "input", "text 1: -1 is no token id"),
    "huge id": ({"input": [2**63 - 1]}, "input", "is no token id"),
    "no dimensions": ({"dimensions": 0}, "dimensions", "from 1"),
    "negative": ({"dimensions": -1}, "dimensions", "from 1"),
    "a half": ({"dimensions": 1.5}, "dimensions", "whole number"),
    "true": ({"dimensions": True}, "dimensions", "not true"),
    "too large": ({"dimensions": 385}, "dimensions", "from 1 to 384, not 385"),
    "encoding": ({"encoding_format": "int8"}, "encoding_format", "float or base64"),
    "user": ({"user": 5}, "user", "must be a string"),
    "no model": ({"model": None}, "model", "not null"),
    "a tensor model": ({"model": "tiny"}, "model", "takes tensor input"),
    "ids of strings": ({"model": "witness", "input": [1]}, "input", "takes strings"),
    "unknown field": ({"extra_body": {"dimension": 4}}, "dimension", "unrecognized"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_refused_by_its_field_in_openais_form(
    client: openai.OpenAI, case: str
) -> None:
    asked, param, said = WRONG[case]

    with pytest.raises(openai.BadRequestError) as raised:
        client.embeddings.create(**{"model": "sentences", "input": "a", **asked})

    assert raised.value.param == param
    assert raised.value.type == "invalid_request_error"
    assert said in str(raised.value.body)


@pytest.mark.parametrize("model", ["nobody", "sentences/2", "someone/all-MiniLM", "sentences/"])
def test_an_unknown_model_is_not_found(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        client.embeddings.create(model=model, input="a")

    assert (raised.value.code, raised.value.type) == ("model_not_found", "invalid_request_error")


def test_a_version_can_be_named_and_both_dialects_list_models(client: openai.OpenAI) -> None:
    assert client.embeddings.create(model="sentences/1", input="a").model == "sentences/1"

    listed = client.models.list()

    names = ["sentences", "sentiment", "tiny", "witness"]
    assert [(model.id, model.object, model.owned_by) for model in listed] == [
        (name, "model", "ferry") for name in names
    ]
    assert all(isinstance(model.created, int) for model in listed)
    assert listed.model_extra == {"models": names}
    one = client.models.retrieve("sentences")
    assert one.to_dict() == {**listed.data[0].to_dict(), "name": "sentences", "ready": True}
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody's")


def test_a_body_that_cannot_be_read_is_refused_in_openais_form(served_models: Settings) -> None:
    packed = gzip.compress(body("a"))
    assert ask(served_models, packed, **{"Content-Encoding": "gzip"})[0] == 200
    refused = {
        400: ask(served_models, b"{"),
        413: ask(served_models, b" " * (LIMIT + 1)),
        415: ask(served_models, packed, **{"Content-Encoding": "br"}),
    }
    for wanted, (status, answer) in refused.items():
        assert status == wanted
        assert answer["error"].keys() == {"message", "type", "param", "code"}


def test_a_key_is_for_one_request(served_models: Settings) -> None:
    key = {"Idempotency-Key": "embedding"}
    first = ask(served_models, body("a"), **key)

    assert first[0] == 200
    assert ask(served_models, body("a"), **key) == first
    status, answer = ask(served_models, body("b"), **key)
    assert (status, answer["error"]["code"]) == (422, "idempotency_conflict")


def test_a_file_of_texts_becomes_a_file_of_vectors(
    served_models: Settings, client: openai.OpenAI, tmp_path: Path
) -> None:
    texts = [*TEXTS, ""] * 20
    rows, output = tmp_path / "in.ndjson", tmp_path / "out.ndjson"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    with connect(served_models.redis_url) as redis:
        done = predict(Bulk("sentences", rows, output), redis, served_models, lambda _: None)

    assert (done.done, done.errors) == (80, 20)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(80))
    wanted = vectors(client.embeddings.create(model="sentences", input=TEXTS))
    for number, line in enumerate(lines):
        if texts[number]:
            found = np.array(line["prediction"]["sentence_embedding"], np.float32)
            assert np.abs(found - wanted[number % 4]).max() < 1e-5
        else:
            assert "empty" in line["error"]


def test_who_names_no_model_is_answered_by_one_that_classifies(served_models: Settings) -> None:
    """Of the models with a tokenizer `sentences` gives vectors, so `sentiment` is the one."""
    connection = HTTPConnection("127.0.0.1", served_models.port, timeout=60)
    connection.request("POST", "/predict/sentences", json.dumps({"text": "a good day"}))
    answer = json.loads(connection.getresponse().read())

    assert np.linalg.norm(answer["sentence_embedding"]) == pytest.approx(1.0, abs=1e-5)
    connection.request("POST", "/predict", json.dumps({"text": "a good day"}))
    said = json.loads(connection.getresponse().read())["error"]
    assert "2 models take text input" in said and "'sentences'" not in said
    connection.close()
