"""The operations page: its stream, its limits, and what operators do there."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import msgpack
import numpy as np
import pytest
from answers import answer, refusal
from flask import Flask
from flask.testing import FlaskClient
from PIL import Image
from registered import SUPERVISOR, register, register_drift, register_shadow, spec
from waiting import wait_until

from api.app import create_app
from api.pages import stream
from api.pages.disagreements import shown_disagreement
from api.pages.operations import ENDED_BY, part_of, shown_errors
from api.routes.operations import STREAMS
from api.routes.page_guard import PAGE_COOKIE, PAGE_HEADER
from shared.history.figures import NOT_ERRORS
from shared.inputs.texts import TokenizerCache
from shared.messages import Tensor
from shared.model_spec import ImageInput, TensorSpec
from shared.operations.disagreements import Disagreement
from shared.operations.shadow_comparison import Comparisons
from shared.registry.desired_state import Serving
from shared.registry.keys import RegistryKeys
from shared.registry.snapshot import InstanceRecord
from shared.request_queue.keys import QueueKeys
from shared.request_queue.model_statistics import COUNTED_ENDS
from shared.settings import Settings
from shared.wire.client import connect

NUMBERS = TensorSpec(name="x", datatype="FP32", dims=(4,))
OURS = {PAGE_HEADER: "ours"}


@pytest.fixture
def app(settings: Settings) -> Iterator[Flask]:
    register(settings, spec("numbers", NUMBERS))
    app = create_app(settings)
    yield app
    app.extensions[STREAMS].close()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    client = app.test_client()
    client.set_cookie(PAGE_COOKIE, "ours")
    return client


def events(client: FlaskClient) -> Iterator[dict[str, Any]]:
    """Yield a page's events as they come."""
    for chunk in client.get("/ops/stream").response:
        for line in chunk.decode().splitlines():
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))


def kill_requests(settings: Settings, count: int) -> None:
    """Write down requests that were given up, as recover.lua does."""
    keys, redis = QueueKeys(settings.key_prefix, "numbers/1"), connect(settings.redis_url)
    entries = [
        msgpack.packb([f"{n:032x}", 1, 1, 3, 1000.0, 1001.0 + n, f"i-{n}", b"s" * 8])
        for n in range(count)
    ]
    redis.lpush(keys.dead, *entries)


def test_a_page_gets_everything_first_and_then_what_changed(
    client: FlaskClient, settings: Settings
) -> None:
    found = events(client)
    first = next(found)

    assert first["whole"]
    assert [model["name"] for model in first["sections"]["models"]] == ["numbers"]
    assert first["sections"]["instances"][0]["state"] == "ready"

    registry = register(settings, spec("numbers", NUMBERS))
    registry.put_instance(
        InstanceRecord(id="n-7.3", supervisor=SUPERVISOR, model="numbers", version="1",
                       state="failed", reason="<b>broken</b>")
    )  # fmt: skip
    change = next(news for news in found if "instances" in news["sections"])

    assert "whole" not in change
    (row,) = [each for each in change["sections"]["instances"] if each["id"] == "n-7.3"]
    assert (row["restarts"], row["reason"]) == (2, "<b>broken</b>")


def test_everything_is_made_once_for_pages_that_open_together(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = app.extensions[STREAMS]
    made: list[int] = []
    whole = streams._made_whole
    monkeypatch.setattr(streams, "_made_whole", lambda: made.append(streams._number) or whole())
    pages = [events(client) for _ in range(3)]
    first = [next(page) for page in pages]

    assert all(each["whole"] and each["sections"]["models"] for each in first)
    assert len(made) == len(set(made))  # the third may open when the next look is over

    streams._publish({"points": []})
    assert next(events(client))["whole"]
    assert len(made) == len(set(made)) and made[-1] == streams._number


def test_a_page_too_many_is_refused_and_one_that_leaves_makes_place(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "MOST_STREAMS", 1)
    opened = client.get("/ops/stream", buffered=False)
    refused = client.get("/ops/stream")
    assert refusal(refused, 503, "queue_full")
    assert refused.headers["Retry-After"]

    opened.close()

    again = client.get("/ops/stream", buffered=False)
    assert again.status_code == 200
    again.close()


def test_streams_end_when_the_process_stops(app: Flask, client: FlaskClient) -> None:
    opened = iter(client.get("/ops/stream", buffered=False).response)
    next(opened)

    app.extensions[STREAMS].close()

    assert not any(b'"whole"' in chunk for chunk in [*opened][1:])


def test_redis_that_goes_and_comes_is_told(app: Flask, client: FlaskClient) -> None:
    streams = app.extensions[STREAMS]
    found = events(client)
    next(found)

    streams._tell_of_trouble("it does not answer")
    told = next(news for news in found if "trouble" in news["sections"])
    assert told["sections"]["trouble"] == "it does not answer"
    told = next(news for news in found if "trouble" in news["sections"])
    assert told["sections"]["trouble"] == ""


def test_dead_requests_come_in_pages_newest_first(client: FlaskClient, settings: Settings) -> None:
    kill_requests(settings, 120)

    first = answer(client.get("/ops/dead"))
    last = answer(client.get("/ops/dead?start=100"))

    assert first["count"] == 120
    assert [letter["instance"] for letter in first["letters"][:2]] == ["i-119", "i-118"]
    assert len(first["letters"]) == 50
    assert [letter["instance"] for letter in last["letters"]][-1] == "i-0"
    assert first["letters"][0]["reason"] == "the process that ran it died, 3 times"
    refusal(client.get("/ops/dead?start=-1"))


def test_many_dead_requests_are_read_soon(client: FlaskClient, settings: Settings) -> None:
    kill_requests(settings, 5000)

    began = time.monotonic()
    found = answer(client.get("/ops/dead?start=4990"))

    assert len(found["letters"]) == 10
    assert time.monotonic() - began < 15


def test_a_dead_request_is_dropped(client: FlaskClient, settings: Settings) -> None:
    kill_requests(settings, 2)

    said = answer(
        client.post("/ops/actions", headers=OURS, json={"action": "drop", "id": f"{0:032x}"})
    )

    assert "forgotten" in said["done"]
    left = answer(client.get("/ops/dead"))["letters"]
    assert [letter["id"] for letter in left] == [f"{1:032x}"]
    gone = client.post("/ops/actions", headers=OURS, json={"action": "drop", "id": f"{0:032x}"})
    refusal(gone, 404, "unknown_request")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"action": "explode"},
        {"action": ["drop"]},
        {"action": "drop"},
        {"action": "use", "model": "numbers"},
        {"action": "use", "model": 7, "version": "1"},
        {"action": "split", "model": "numbers", "weights": {"1": -1}},
        {"action": "split", "model": "numbers", "weights": {"1": True}},
        {"action": "split", "model": "numbers", "weights": []},
        {"action": "load", "model": "numbers"},
    ],
)
def test_other_actions_are_refused(client: FlaskClient, body: dict[str, Any]) -> None:
    refusal(client.post("/ops/actions", headers=OURS, json=body))


def test_only_our_own_pages_act(client: FlaskClient) -> None:
    body = {"action": "unload", "model": "numbers"}

    refusal(client.post("/ops/actions", json=body), 403, "foreign_page")
    foreign = {**OURS, "Origin": "http://elsewhere.example"}
    refusal(client.post("/ops/actions", headers=foreign, json=body), 403, "foreign_page")
    refusal(client.get("/ops/stream", headers={"Host": "x.example"}), 403, "unknown_host")


def test_errors_are_called_by_status_and_code() -> None:
    ended = {"failed": 2, "expired": 1, "rejected": 3, "full": 4, "retried": 9, "cancelled": 0}

    assert shown_errors(ended) == {
        "500 model_failed": 2, "503 queue_full": 4, "503 request_expired": 4,
    }  # fmt: skip


def test_every_end_that_is_counted_has_an_error() -> None:
    assert set(ENDED_BY) == {"failed", *COUNTED_ENDS} - set(NOT_ERRORS)


def test_refusals_before_a_queue_are_shown_by_status_and_code(client: FlaskClient) -> None:
    for path in ("nobody", "nothing"):
        refusal(client.post(f"/v2/models/{path}/infer", json={"inputs": []}), 404, "unknown_model")

    first = next(events(client))

    assert first["sections"]["refused"] == {"404 unknown_model": 2}


@pytest.mark.parametrize(("rows", "drifting"), [(150, []), (300, ["prediction"])])
def test_a_version_that_drifts_is_shown_with_what_changed(
    client: FlaskClient, settings: Settings, rows: int, drifting: list[str]
) -> None:
    register_drift(settings, spec("numbers", NUMBERS), rows)

    (row,) = next(events(client))["sections"]["drift"]

    assert (row["model"], row["version"], row["rows"]) == ("numbers", "1", rows)
    assert row["missing"] == max(0, 200 - rows)
    assert [each["signal"] for each in row["signals"]] == drifting
    assert all(each["change"] == "1: 33% -> 100%" for each in row["signals"])


def test_what_a_shadow_answered_otherwise_is_shown_as_its_model_answers(
    client: FlaskClient, settings: Settings
) -> None:
    refusal(client.get("/ops/disagreements/numbers"), 404, "unknown_model")
    picture = ImageInput(input="x", channels="BGR", width=2, height=1)
    served = spec("seen", TensorSpec(name="x", datatype="FP32", dims=(3, 1, 2)), image=picture)
    shadow = register_shadow(settings, served)
    redis, keys = connect(settings.redis_url), RegistryKeys(settings.key_prefix)
    pixels = np.uint8([[[[255, 0, 0], [0, 0, 7]]]])
    answers_ = [(Tensor.of("out", np.float32([each])),) for each in ([0, 9, 0], [9, 0, 0])]
    kept = Comparisons(redis, settings.key_prefix)
    for at in (1.0, 2.0, 3.0):
        one = Disagreement(at, (Tensor.of("x", pixels, pixels=True),), *answers_)
        kept.keep(shadow.key, "1", [one], 2)
    kept.keep(shadow.key, "1", [Disagreement(4.0, (), answers_[0], (), "<b>out of memory</b>")], 2)
    redis.rpush(keys.disagreed(shadow.key, "1"), b"\xc1 of others")

    found: Any = answer(client.get("/ops/disagreements/seen"))

    assert [each["at"] for each in found["examples"]] == [4.0, 3.0]
    failed, differs = found["examples"]
    assert (failed["error"], failed["shadow"], failed["inputs"]) == (
        "<b>out of memory</b>",
        None,
        [],
    )
    assert (differs["served"]["class"], differs["shadow"]["class"]) == (1, 0)
    (shown,) = differs["inputs"]
    png = base64.b64decode(shown["value"].removeprefix("data:image/png;base64,"))
    assert np.asarray(Image.open(BytesIO(png))).tolist() == [[[0, 0, 255], [7, 0, 0]]]


def test_a_picture_that_the_worker_decoded_is_shown_as_its_model_saw_it() -> None:
    image = ImageInput(input="x", width=2, height=1, decode_in="worker")
    model = spec("seen", TensorSpec(name="x", datatype="FP32", dims=(3, 1, 2)), image=image)
    file = BytesIO()
    Image.new("RGB", (8, 4), (1, 2, 3)).save(file, "PNG")
    as_came = Tensor.of("x", np.array([file.getvalue()], dtype=object), pixels=True)
    seen = Disagreement.decode(Disagreement(1.0, (as_came,), (), ()).encode())

    (shown,) = shown_disagreement(seen, model, model, TokenizerCache(None))["inputs"]  # type: ignore[arg-type]

    png = base64.b64decode(shown["value"].removeprefix("data:image/png;base64,"))
    assert np.asarray(Image.open(BytesIO(png))).tolist() == [[[1, 2, 3]] * 2]


def test_the_looking_ends_with_the_last_page(app: Flask, client: FlaskClient) -> None:
    streams = app.extensions[STREAMS]
    opened = client.get("/ops/stream", buffered=False)
    assert streams._looks
    opened.close()

    wait_until(lambda: not streams._looks, 20, "the looking ends")


def test_a_versions_part_is_its_share_and_what_it_is_besides() -> None:
    serving = Serving(versions={}, default="1", split={"1": 9, "2": 1}, shadow="3", canary="2")

    assert part_of(serving, "1") == {"share": 0.9, "role": "serves"}
    assert part_of(serving, "2") == {"share": 0.1, "role": "canary"}
    assert part_of(serving, "3") == {"share": 0.0, "role": "shadow"}
