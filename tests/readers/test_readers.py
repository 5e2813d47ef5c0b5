"""Large and unusual bodies are read in processes beside the event loop, in bounded time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from heavy_pictures import HEADS, picture
from registered import spec

from api.payloads.embeddings import EmbeddingBody
from api.payloads.json_size import LIGHT_JSON_BYTES
from api.payloads.v1_json import parse_predict
from api.payloads.v2_json import parse_infer
from api.readers import readers
from api.readers.readers import Readers
from shared.errors import BadRequest, FerryError, PayloadTooLarge
from shared.inputs import reader_process
from shared.inputs.pictures import picture_batch
from shared.inputs.texts import TokenizerCache
from shared.messages import Buffer, Tensor
from shared.model_spec import ImageInput, ModelSpec, TensorSpec
from shared.settings import Settings

ROWS = 8
NUMBERS = spec("numbers", TensorSpec(name="x", datatype="FP32", dims=(40_000,))).with_changes(
    max_batch_size=ROWS
)
PICTURES = spec(
    "pictures",
    TensorSpec(name="image", datatype="UINT8", dims=(3, 8, 8)),
    image=ImageInput(input="image", height=8, width=8),
)
WORDS = spec("words", TensorSpec(name="text", datatype="BYTES", dims=(1,))).with_changes(
    max_batch_size=ROWS
)


@pytest.fixture(scope="module")
def beside() -> Iterator[Readers]:
    """Readers that take their processes for all that is not light, as under gevent."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "in_event_loop", lambda: True)
        made = Readers(Settings())
        yield made
        for reader in made._idle:
            reader.end()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tasks that went to a process."""
    found: list[str] = []
    ask = Readers._ask

    def noted(self: Readers, task: str, *more: object) -> object:
        found.append(task)
        return ask(self, task, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(Readers, "_ask", noted)
    return found


def v2(rows: list[list[float]], **more: object) -> bytes:
    tensor = {"name": "x", "shape": [len(rows), len(rows[0])], "datatype": "FP32", "data": rows}
    return json.dumps({"inputs": [tensor], **more}).encode()


SOME_ROWS = np.random.default_rng(0).random((2, 40_000)).tolist()


def test_a_large_body_is_what_it_is_when_read_here(beside: Readers, asked: list[str]) -> None:
    raw = v2(
        SOME_ROWS, id="ä", parameters={"priority": 1, "a": "b"},
        outputs=[{"name": "out", "parameters": {"classification": 3}}],
    )  # fmt: skip
    assert len(raw) > LIGHT_JSON_BYTES

    assert beside.infer(raw, NUMBERS, None) == parse_infer(raw, NUMBERS)
    assert asked == ["infer"]


def test_binary_data_is_not_what_makes_a_body_large(beside: Readers, asked: list[str]) -> None:
    data = np.ones((ROWS, 40_000), np.float32).tobytes()
    tensor = {
        "name": "x", "shape": [ROWS, 40_000], "datatype": "FP32",
        "parameters": {"binary_data_size": len(data)},
    }  # fmt: skip
    text = json.dumps({"inputs": [tensor]}).encode()

    assert beside.infer(text + data, NUMBERS, len(text)).inputs[0].data == data
    assert asked == []


def test_version_1_is_read_beside_too(beside: Readers, asked: list[str]) -> None:
    raw = json.dumps({"instances": SOME_ROWS}).encode()
    nobody = TokenizerCache(None)  # type: ignore[arg-type]

    assert beside.predict(raw, NUMBERS, nobody) == parse_predict(raw, NUMBERS, nobody)
    assert asked == ["predict"]


def test_large_texts_come_back_as_they_are(beside: Readers, asked: list[str]) -> None:
    text = "ä," * LIGHT_JSON_BYTES
    raw = json.dumps({"instances": [text]}).encode()
    nobody = TokenizerCache(None)  # type: ignore[arg-type]

    _, inputs = beside.predict(raw, WORDS, nobody)

    assert inputs[0].array().tolist() == [[text.encode()]]
    part = beside.predict_body(json.dumps({"text": text}).encode(), lambda _: WORDS)
    assert part == ("text", text)
    assert asked == ["predict", "object"]


def test_predict_has_a_large_tensor_made(beside: Readers) -> None:
    part = beside.predict_body(json.dumps({"input_tensor": SOME_ROWS}).encode(), lambda _: NUMBERS)

    assert part.what == "input_tensor"
    assert part.value == Tensor.of("x", np.array(SOME_ROWS, np.float32))


def test_pictures_come_out_the_same(beside: Readers, asked: list[str]) -> None:
    several: list[Buffer] = [picture(1200), picture(8), memoryview(picture(300, "JPEG"))]
    many = PICTURES.with_changes(max_batch_size=3)

    assert beside.pictures(several, many) == picture_batch(several, many)
    assert asked == ["pictures"]
    beside.pictures(several[1:2], many)
    assert asked == ["pictures"]


def test_a_head_that_takes_too_long_is_refused(beside: Readers) -> None:
    kind, at, pieces = HEADS["PPM: comments"]
    data, many = picture(8, kind), pieces * 600

    with pytest.raises(BadRequest, match="more time or memory"):
        beside.pictures([data[:at] + many + data[at:]], PICTURES)
    assert beside.pictures([picture(1200)], PICTURES).shape == (1, 8, 8, 3)


def refused(beside: Readers, raw: bytes, model: ModelSpec = NUMBERS) -> FerryError:
    with pytest.raises(FerryError) as found:
        beside.infer(raw, model, None)
    return found.value


BOMBS = {
    "lists": b'{"inputs":[' + b"[]," * 2_000_000 + b"[]]}",
    "inputs": b'{"inputs":[' + b'{"name":"a"},' * 500_000 + b"{}]}",
    "outputs": b'{"inputs":[],"outputs":[' + b'{"name":"a"},' * 500_000 + b"{}]}",
    "parameters": b'{"parameters":{' + b",".join(b'"%d":1' % n for n in range(900_000)) + b"}}",
    "a shape": b'{"inputs":[{"name":"x","shape":[' + b"1," * 3_000_000 + b"1]}]}",
    "data": b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":['
    + b"0," * 3_000_000
    + b"0]}]}",
}


@pytest.mark.parametrize("what", BOMBS)
def test_more_values_than_any_request_has_are_counted_not_parsed(
    beside: Readers, asked: list[str], what: str
) -> None:
    error = refused(beside, BOMBS[what])

    assert error.code == "bad_request"
    assert error.message.endswith("the largest request to 'numbers' has 320000 elements")
    assert asked == []


def test_many_lists_are_not_light_however_short_they_are(beside: Readers, asked: list[str]) -> None:
    lists = b'{"inputs":[' + b"[]," * 80_000 + b"[]]}"
    assert len(lists) < LIGHT_JSON_BYTES

    few = NUMBERS.with_changes(max_batch_size=1).model_copy(
        update={"inputs": (TensorSpec(name="x", datatype="FP32", dims=(16,)),)}
    )
    assert "at least 80000 values" in refused(beside, lists, few).message
    assert asked == []
    refused(beside, lists)  # of a model whose requests may have so many values
    assert asked == ["infer"]


@pytest.mark.parametrize("field", ["input", "user"])
def test_embeddings_are_read_beside_and_errors_keep_their_field(
    beside: Readers, asked: list[str], field: str
) -> None:
    wrong = b'{"model":"m","input":"a","%b":[%b{}]}' % (field.encode(), b"{}," * 6_000)
    texts = ["ä," * 90_000, "b" * 200_000]

    with pytest.raises(BadRequest) as caught:
        beside.embeddings(wrong)
    found = beside.embeddings(json.dumps({"model": "m", "input": texts, "dimensions": 3}).encode())

    assert caught.value.param == field
    assert found == EmbeddingBody("m", texts, "float", 3)
    assert asked == ["embeddings", "embeddings"]


@pytest.mark.parametrize("form", ["text", "instances"])
def test_more_texts_than_rows_do_not_come_back(
    beside: Readers, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    raw = json.dumps({form: ["a"] * 100_000}).encode()
    nobody = TokenizerCache(None)  # type: ignore[arg-type]
    monkeypatch.setattr(nobody, "encode", None)

    with pytest.raises(BadRequest, match=f"must be <= {ROWS} .* has 100000"):
        if form == "text":
            beside.predict_body(raw, lambda _: WORDS)
        else:
            beside.predict(raw, WORDS, nobody)


@pytest.mark.parametrize("what", ["outputs", "a shape"])
def test_a_model_of_strings_has_them_refused_beside(
    beside: Readers, asked: list[str], what: str
) -> None:
    error = refused(beside, BOMBS[what], WORDS)

    assert error.code == "bad_request" and len(error.message) < 600
    assert asked == ["infer"]


def test_json_has_a_limit_of_its_own() -> None:
    small = Readers(replace(Settings(), max_json_bytes=LIGHT_JSON_BYTES + 100))

    error = refused(small, v2(SOME_ROWS))

    assert isinstance(error, PayloadTooLarge) and "at most 262244 bytes" in error.message


def test_the_death_of_a_reader_costs_one_request(
    beside: Readers, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = v2(SOME_ROWS)
    beside.infer(raw, NUMBERS, None)
    send = reader_process.FRAME.pack

    with monkeypatch.context() as patch:  # its task is one that no reader knows
        patch.setattr(
            reader_process, "FRAME", type("Odd", (), {"pack": lambda *_: send(9, 0), "size": 12})
        )
        with pytest.raises(BadRequest, match="more time or memory"):
            beside.infer(raw, NUMBERS, None)

    assert beside.infer(raw, NUMBERS, None) == parse_infer(raw, NUMBERS)


def test_a_reader_that_ended_while_it_was_idle_is_replaced(beside: Readers) -> None:
    raw = v2(SOME_ROWS)
    beside.infer(raw, NUMBERS, None)
    (reader,) = beside._idle
    reader._line.shutdown(2)  # it ends in peace, as one that nobody asked for long
    assert reader._process.wait(timeout=30) == 0

    assert beside.infer(raw, NUMBERS, None) == parse_infer(raw, NUMBERS)
