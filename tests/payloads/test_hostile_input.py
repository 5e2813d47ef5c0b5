"""Whatever a client sends, it is told what was wrong: a 4xx, soon, and in bounded memory.

Here are v2's and version 1's bodies, binary frames, multipart forms, and HTTP itself. The generated
ones find what nobody thought of; `tests/fuzz` looks further, guided by coverage.
"""

from __future__ import annotations

import gc
import io
import json
import os
import socket
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from ferry_processes import free_port, running_gunicorn
from flask.testing import FlaskClient
from hostile import LIMIT, MODELS, app_that_refuses_what_fits, check_frame, check_v1, check_v2
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as some
from PIL import Image
from registered import register

from api.payloads.binary_tensors import HEADER
from shared.errors import FerryError
from shared.settings import Settings

EXAMPLES = int(os.environ.get("HOSTILE_EXAMPLES", "150"))
"""`HOSTILE_EXAMPLES=100000` looks for longer."""
searched = settings(
    max_examples=EXAMPLES,
    deadline=timedelta(seconds=2),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

# werkzeug leaves the files of a form that it refuses to the garbage collector, which says so.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

NUMBERS = (
    some.sampled_from([2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)])
    | some.integers(-3, 9)
    | some.sampled_from([0.5, -0.0, 1e308, 1e39])
)  # fmt: skip
WORDS = some.sampled_from(
    ["inputs", "outputs", "name", "shape", "datatype", "data", "parameters", "id", "x", "a", "b",
     "y", "out", "binary_data_size", "binary_data", "binary_data_output", "classification",
     "priority", "timeout", "shared_memory_region", "instances", "signature_name", "b64",
     "FP32", "INT16", "BYTES", "BOOL", "FP16", "BF16", "UINT64", "", "é", "\0"]
)  # fmt: skip
ANYTHING = some.recursive(
    some.none() | some.booleans() | NUMBERS | WORDS | some.text(max_size=3),
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(WORDS, inner, max_size=5),
    max_leaves=20,
)
SHAPES = some.lists(NUMBERS, max_size=4) | ANYTHING


def often(right: Any, wrong: some.SearchStrategy[Any]) -> some.SearchStrategy[Any]:
    """Return the right value three times out of four: a body wrong everywhere is refused early."""
    return some.integers(0, 3).flatmap(lambda dice: wrong if dice == 0 else some.just(right))


def an_input(model: Any) -> some.SearchStrategy[Any]:
    declared = model.inputs[0]
    shape = [1 if model.batched else 2, *(2 if dim == -1 else dim for dim in declared.dims)]
    return some.fixed_dictionaries(
        {
            "name": often(declared.name, WORDS),
            "shape": often(shape, SHAPES),
            "datatype": often(declared.datatype, WORDS | ANYTHING),
        },
        optional={
            "data": some.lists(NUMBERS, max_size=5) | ANYTHING,
            "parameters": some.fixed_dictionaries(
                {}, optional={"binary_data_size": NUMBERS | ANYTHING}
            )
            | ANYTHING,
        },
    )


def a_body(model: Any) -> some.SearchStrategy[Any]:
    return some.fixed_dictionaries(
        {"inputs": some.lists(an_input(model), max_size=3) | ANYTHING},
        optional={
            "id": often("7", ANYTHING),
            "outputs": some.lists(
                some.fixed_dictionaries(
                    {"name": often("out", WORDS)},
                    optional={
                        "parameters": some.dictionaries(
                            WORDS, NUMBERS | some.booleans(), max_size=3
                        )
                    },
                ),
                max_size=3,
            )
            | ANYTHING,
            "parameters": some.dictionaries(WORDS, NUMBERS | some.booleans(), max_size=3)
            | ANYTHING,
        },
    )


some_models = some.sampled_from(MODELS)
some_bodies = some_models.flatmap(lambda model: some.tuples(some.just(model), a_body(model)))


@some.composite
def damaged(draw: some.DrawFn, whole: bytes) -> bytes:
    """Return `whole`, most often with a few of its bytes replaced, doubled or dropped."""
    raw = bytearray(whole)
    for _ in range(draw(some.integers(0, 3))):
        where = draw(some.integers(0, max(0, len(raw) - 1)))
        raw[where : where + draw(some.integers(0, 3))] = draw(some.binary(max_size=4))
    return bytes(raw)


CHUNKS = some.sampled_from(
    [b"", bytes(2), bytes(4), bytes(8), b"\0\1", b"\2\1", b"\1\0\0\0a", b"\1\0\0\0ab", bytes(16)]
)


@some.composite
def frames(draw: some.DrawFn) -> tuple[Any, bytes, bytes]:
    """Make a model's binary request, most of it right: the model, the JSON, what stands behind."""
    model = draw(some_models)
    items, tail = [], b""
    for declared in model.inputs:
        shape = [1] * model.batched + [2 if dim == -1 else dim for dim in declared.dims]
        near = some.lists(some.integers(-2, 2), min_size=len(shape), max_size=len(shape))
        chunk = draw(CHUNKS | some.binary(max_size=16))
        size = draw(often(len(chunk), NUMBERS | ANYTHING))
        items.append(
            {
                "name": declared.name,
                "datatype": declared.datatype,
                "shape": draw(often(shape, near) | near),
                "parameters": {"binary_data_size": size},
            }
        )
        tail += chunk
    text = json.dumps({"inputs": items}).encode()
    return model, text, tail + draw(often(b"", some.binary(max_size=3)))


def bounded(check: Callable[..., Any], raw: bytes, *rest: Any) -> None:
    """Run a parser; fail for anything but a 4xx, and for memory out of all proportion."""

    def run() -> None:
        try:
            check(raw, *rest)
        except FerryError as error:
            assert 400 <= error.status < 500 or error.code == "unsupported", repr(error)

    assert takes_less_than(2**21 + 64 * len(raw), run)


def takes_less_than(limit: int, run: Callable[[], Any]) -> bool:
    """Tell whether what runs takes fewer bytes at its peak.

    All threads of the process are measured, and other tests' may wake up in between: what takes
    more is measured again.
    """
    return any(peak_bytes(run) < limit for _ in range(3))


def peak_bytes(run: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# The parsers, by generated input.


@searched
@given(some_bodies, some.data())
def test_a_v2_body_is_answered_or_refused(asked: Any, data: some.DataObject) -> None:
    model, body = asked
    bounded(check_v2, data.draw(damaged(json.dumps(body).encode())), model)


@searched
@given(some_bodies, some.binary(max_size=24), some.integers(-2, 400), some.data())
def test_a_binary_frame_is_answered_or_refused(
    asked: Any, tail: bytes, shift: int, data: some.DataObject
) -> None:
    model, body = asked
    text = json.dumps(body).encode()
    length = len(text) if shift < 200 else shift - 200
    bounded(check_frame, data.draw(damaged(text + tail)), model, str(length))


@settings(searched, max_examples=4 * EXAMPLES)
@given(frames())
@example(
    (
        MODELS[2],
        b'{"inputs":[{"name":"x","datatype":"INT16","shape":[-1,-2],'
        b'"parameters":{"binary_data_size":4}}]}',
        bytes(4),
    )
)
def test_a_binary_frame_that_is_nearly_right_is_answered_or_refused(asked: Any) -> None:
    model, text, tail = asked
    bounded(check_frame, text + tail, model, str(len(text)))


@searched
@given(some_models, some.binary(max_size=64))
def test_a_raw_request_is_answered_or_refused(model: Any, body: bytes) -> None:
    bounded(check_frame, body, model, "0")


@searched
@given(some_models, some.text(max_size=25) | NUMBERS.map(str), some.binary(max_size=64))
@example(MODELS[0], "9" * 5000, b"")
def test_a_header_of_anything_is_answered_or_refused(model: Any, header: str, body: bytes) -> None:
    bounded(check_frame, body, model, header)


@searched
@given(
    some_models,
    some.fixed_dictionaries({}, optional={"instances": ANYTHING, "inputs": ANYTHING}) | ANYTHING,
    some.data(),
)
def test_a_version_1_body_is_answered_or_refused(
    model: Any, body: Any, data: some.DataObject
) -> None:
    bounded(check_v1, data.draw(damaged(json.dumps(body).encode())), model)


@searched
@given(some.binary(max_size=200), some_models)
@example(b"[" * 100_000, MODELS[0])
@example(b'{"a":' * 100_000, MODELS[0])
@example(b'{"inputs":' + b"[" * 1000 + b"]" * 1000 + b"}", MODELS[0])
@example(b"\xff\xfe{}", MODELS[0])
@example(b'{"inputs": "\xed\xa0\x80"}', MODELS[0])
@example(b"\0" * 1000, MODELS[0])
def test_bytes_that_are_no_json_are_refused_by_every_parser(raw: bytes, model: Any) -> None:
    bounded(check_v2, raw, model)
    bounded(check_v1, raw, model)
    bounded(check_frame, raw, model, str(len(raw)))


# What would cost more than it brought.


def numbers_with(element: str) -> bytes:
    many = ",".join(["1"] * 20_000)
    return (
        f'{{"inputs":[{{"name":"x","shape":[20001],"datatype":"FP32","data":[{element},{many}]}}]}}'
    ).encode()


@pytest.mark.parametrize(
    "element", ['"' + 10_000 * "a" + '"', "null", "{}", "[1]", "true", "[" * 60 + "]" * 60]
)
def test_one_element_of_another_kind_costs_no_more_than_the_others(element: str) -> None:
    # numpy would make room for the longest string in every element: here 800 MB.
    bounded(check_v2, numbers_with(element), model_named("loose"))


def test_nested_lists_of_strings_cost_no_more_than_flat_ones() -> None:
    rows = ",".join(['["' + 10_000 * "a" + '"]', *["[1]"] * 20_000])
    item = f'{{"name":"x","shape":[20001],"datatype":"FP32","data":[{rows}]}}'
    bounded(check_v2, f'{{"inputs":[{item}]}}'.encode(), model_named("loose"))


@pytest.mark.parametrize("count", [2**31, 2**62, 2**63 - 1])
def test_a_shape_of_more_than_was_sent_makes_nothing(count: int) -> None:
    for datatype, model in (("FP32", "loose"), ("BYTES", "words")):
        item = {"name": "x", "shape": [count], "datatype": datatype}
        sized = item | {"parameters": {"binary_data_size": 4}}
        body = json.dumps({"inputs": [item | {"data": [1]}]}).encode()
        frame = json.dumps({"inputs": [sized]}).encode()

        bounded(check_v2, body, model_named(model))
        bounded(check_frame, frame + bytes(4), model_named(model), str(len(frame)))


def test_thousands_of_inputs_outputs_and_parameters_are_refused() -> None:
    item = {"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}
    many: list[Any] = [
        {"inputs": [item] * 5000},
        {"inputs": [item], "outputs": [{"name": "out"}] * 5000},
        {"inputs": [item], "outputs": [{"name": str(index)} for index in range(5000)]},
    ]
    for body in many:
        raw = json.dumps(body).encode()
        with pytest.raises(FerryError):
            check_v2(raw, model_named("loose"))
        bounded(check_v2, raw, model_named("loose"))


def model_named(name: str) -> Any:
    return next(model for model in MODELS if model.name == name)


# Forms.


@pytest.fixture(scope="module")
def served(redis_url: str) -> Settings:
    return Settings(
        redis_url=redis_url,
        key_prefix="hostile",
        port=free_port(),
        api_processes=1,
        max_body_bytes=LIMIT,
        request_timeout_seconds=0.5,
    )


@pytest.fixture(scope="module")
def client(served: Settings) -> Iterator[FlaskClient]:
    register(served, *MODELS)
    yield app_that_refuses_what_fits(served).test_client()
    gc.collect()


def a_picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (3, 2), (1, 2, 3)).save(file, "PNG")
    return file.getvalue()


PART = (
    b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n'
    b"Content-Type: image/png\r\n\r\n"
)
FORM = PART + a_picture() + b"\r\n--xyz--\r\n"
FORM_TYPE = "multipart/form-data; boundary=xyz"


def refused(client: FlaskClient, body: bytes, content_type: str = FORM_TYPE) -> str:
    response = client.post("/predict/pictures", data=body, content_type=content_type)
    assert 400 <= response.status_code < 500, response.text
    message: str = response.get_json()["error"]
    return message


@searched
@given(data=some.data())
def test_a_damaged_form_is_refused(client: FlaskClient, data: some.DataObject) -> None:
    refused(client, data.draw(damaged(FORM)))


@searched
@given(
    some.text(some.characters(min_codepoint=32, max_codepoint=255), max_size=80),
    some.binary(max_size=80),
)
@example("multipart/form-data", FORM)
@example("multipart/form-data; boundary=", FORM)
@example("multipart/form-data; boundary=" + 200 * "x", FORM)
@example("multipart/form-data; boundary=xyz; boundary=abc", FORM)
def test_any_type_of_any_body_is_refused(
    client: FlaskClient, content_type: str, body: bytes
) -> None:
    refused(client, body, content_type)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        PART,
        PART * 5000 + FORM,
        PART.replace(b'"file"', b'"' + 50_000 * b"f" + b'"') + FORM,
        PART.replace(b"\r\n\r\n", b"\r\n" + 5000 * b"X-More: 1\r\n" + b"\r\n") + FORM,
        b"--xyz\r\n" * 5000,
        b"--xyz" * 20_000,
        b"\r\n--xy" * 15_000,
        b"\r" * LIMIT,
        b"\n" * LIMIT,
        b"--xyz\r\n" + 50_000 * b"a",
        b"--xyz\r\nContent-Disposition: form-data; name=\"\xff\xfe\"\r\n\r\nx\r\n--xyz--\r\n",
        b"--xyz\r\nContent-Disposition: " + 20_000 * b";" + b"\r\n\r\nx\r\n--xyz--\r\n",
    ],
    ids=range(13),
)  # fmt: skip
def test_a_form_that_is_mostly_dividers_or_headers_is_refused(
    client: FlaskClient, body: bytes
) -> None:
    assert takes_less_than(8 * 2**20, lambda: refused(client, body))


def test_thousands_of_parts_are_refused_as_such(client: FlaskClient) -> None:
    part = b'--xyz\r\nContent-Disposition: form-data; name=""\r\n\r\n\r\n'

    assert "more than 256 parts" in refused(client, part * 1500 + b"--xyz--\r\n")


# HTTP itself, against a real gunicorn.


@pytest.fixture(scope="module")
def log_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "api.log"


@pytest.fixture(scope="module")
def port(served: Settings, log_file: Path) -> Iterator[int]:
    register(served, *MODELS)
    with running_gunicorn(served, log_file):
        yield served.port


LINE = b"POST /v2/models/loose/infer HTTP/1.1\r\nHost: localhost\r\n"
BODY = b'{"inputs": []}'
SMUGGLED = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"


def answered(port: int, request: bytes, *, step: int = 0) -> bytes:
    """Send a request, all at once or in steps, and read to the end of the connection.

    What gunicorn has not read when it closes resets the connection, which may lose its answer.
    """
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection, suppress(OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(request), step or len(request)):
            connection.sendall(request[start : start + (step or len(request))])
        connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(65536):
            received += part
    return received


def status_of(port: int, request: bytes, *, step: int = 0) -> int:
    """Return the status of the only answer, 400 when the connection was reset instead."""
    received = answered(port, request, step=step)
    assert received.count(b"HTTP/1.1 ") <= 1, received
    return int(received.split()[1]) if received else 400


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 14\r\nContent-Length: 5\r\n",
        b"Content-Length: 14\r\nContent-Length: 14\r\n",
        b"Content-Length: 14, 14\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: +14\r\n",
        b"Content-Length: 0x0e\r\n",
        b"Content-Length: 14 \r\n 5\r\n",
        b"Content-Length: \xb2\r\n",
        b"Content-Length: " + 5000 * b"9" + b"\r\n",
        b"Content-Length: 14\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 14\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked, chunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: xchunked\r\nContent-Length: 14\r\n",
        b"Transfer-Encoding: \x0bchunked\r\n",
        b"Transfer_Encoding: chunked\r\nContent-Length: -5\r\n",
        b"Content-Length : 14\r\n",
        b"Content-Length: 14\nX: y\r\n",
        b"X: \0\r\nContent-Length: 14\r\n",
        b"X: " + 20_000 * b"a" + b"\r\nContent-Length: 14\r\n",
        b"".join(b"X-%d: 1\r\n" % index for index in range(2000)),
        b"Inference-Header-Content-Length: 2\r\nInference-Header-Content-Length: 14\r\n"
        b"Content-Length: 14\r\n",
        b"Inference-Header-Content-Length: 15\r\nContent-Length: 14\r\n",
        b"Content-Length: 14\r\nContent-Encoding: gzip\r\n",
        b"Content-Length: 14\r\nContent-Encoding: gzip\r\nContent-Encoding: deflate\r\n",
    ],
    ids=range(26),
)
def test_headers_that_contradict_each_other_are_refused_and_nothing_behind_them_is_answered(
    port: int, headers: bytes
) -> None:
    status = status_of(port, LINE + headers + b"\r\n" + BODY + SMUGGLED * headers.startswith(b"T"))

    assert 400 <= status < 500 or status == 501


@pytest.mark.parametrize(
    "chunks",
    [
        b"zz\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello!\r\n0\r\n\r\n",
        b"5\nhello\n0\n\n",
        b"ffffffffffffffffffff\r\n" + BODY,
        b"5;" + 20_000 * b"a" + b"\r\nhello\r\n0\r\n\r\n",
        b"5;\0\r\nhello\r\n0\r\n\r\n",
        b"\r\n",
        b"",
        b"5\r\nhel",
        b"0\r\n" + b"".join(b"X-%d: 1\r\n" % index for index in range(5000)) + b"\r\n",
        b"0\r\nContent-Length: 5\r\n\r\n",
        b"1\r\n{\r\n" * (LIMIT + 1) + b"0\r\n\r\n",
    ],
    ids=range(14),
)
def test_a_chunked_body_that_is_none_is_refused(port: int, log_file: Path, chunks: bytes) -> None:
    for path in (b"/v2/models/loose/infer", b"/predict/loose", b"/predict/pictures"):
        form = b"Content-Type: multipart/form-data; boundary=xyz\r\n" * path.endswith(b"pictures")
        head = b"POST " + path + b" HTTP/1.1\r\nHost: localhost\r\n" + form

        assert 400 <= status_of(port, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks) < 500
    assert b"Traceback" not in log_file.read_bytes()


def test_a_request_byte_by_byte_is_the_same_request(port: int) -> None:
    whole = LINE + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    chunked = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"

    assert status_of(port, whole, step=1) == 400
    assert status_of(port, LINE + b"Transfer-Encoding: chunked\r\n\r\n" + chunked, step=1) == 400


@searched
@given(some.data())
def test_a_damaged_request_is_never_an_error_of_ours(port: int, data: some.DataObject) -> None:
    item = {"name": "x", "shape": [1], "datatype": "FP32", "parameters": {"binary_data_size": 3}}
    text = json.dumps({"inputs": [item]}).encode()
    head = b"Content-Length: %d\r\n%s: %d\r\n\r\n" % (len(text) + 3, HEADER.encode(), len(text))
    received = answered(port, data.draw(damaged(LINE + head + text + b"abc")))

    assert b"HTTP/1.1 500" not in received


def test_after_all_that_the_server_answers_and_has_logged_no_error(
    port: int, log_file: Path
) -> None:
    assert status_of(port, SMUGGLED) == 200
    assert b"Traceback" not in log_file.read_bytes()
