"""Keys at a real gunicorn and a real gRPC server, beside a model of the test's own."""

from __future__ import annotations

import http.client
import json
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from counting_model import CountingModel, counting_model
from ferry_processes import free_port, running_gunicorn
from grpc_process import grpc_client, refused, row, running_grpc
from raw_http import connected, message
from test_api_keys import made
from tritonclient import http as triton_http
from waiting import wait_until

from shared.access.admission import LEASE_MARGIN_SECONDS
from shared.access.key_store import KeysInRedis, add, revoke
from shared.access.keys import AccessKeys
from shared.settings import Settings
from shared.wire.client import connect

INFER = "/v2/models/fake/infer"
BODY = json.dumps(
    {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [3, 4]}]}
).encode()
Reply = tuple[int, Mapping[str, str], Any]


class Served:
    """Both servers' ports, and the keys' texts by their names."""

    def __init__(self, settings: Settings, model: CountingModel) -> None:
        self.settings, self.model = settings, model
        self.store = KeysInRedis(connect(settings.redis_url), settings.key_prefix)
        self.secrets: dict[str, str] = {}

    def add(self, name: str, **fields: Any) -> str:
        key, self.secrets[name] = made(name, **fields)
        add(self.store, key)
        return self.secrets[name]

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.settings.port, timeout=60)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            response = connection.getresponse()
            raw = response.read()
        finally:
            connection.close()
        is_json = response.headers["Content-Type"].startswith("application/json")
        return response.status, response.headers, json.loads(raw) if is_json else raw.decode()

    def status(self, method: str, path: str, key: str | None = None, **headers: str) -> int:
        if key is not None:
            headers["Authorization"] = f"Bearer {self.secrets[key]}"
        body = BODY if path.endswith("infer") else b"{}" if method == "POST" else None
        return self.ask(method, path, body, **headers)[0]


@pytest.fixture(scope="module")
def served(redis_url: str) -> Iterator[Served]:
    settings = Settings(
        redis_url=redis_url, key_prefix="served-keys", port=free_port(), grpc_port=free_port(),
        api_processes=1, model_control_mode="explicit", request_timeout_seconds=20.0,
    )  # fmt: skip
    with counting_model(settings, max_batch_size=4) as model:
        found = Served(settings, model)
        found.add("app", models=("fa*",))
        found.add("other", models=("others-*",))
        found.add("ops", roles=("admin",))
        found.add("scraper", roles=("metrics",))
        with running_gunicorn(settings), running_grpc(settings):
            yield found


FOR_KEYS = {
    ("POST", INFER): {"app", "ops"},
    ("POST", "/v2/models/fake/versions/1/infer"): {"app", "ops"},
    ("GET", "/v2/models/fake"): {"app", "ops"},
    ("GET", "/v2/models/fake/config"): {"app", "ops"},
    ("GET", "/v2/models/fake/stats"): {"app", "ops"},
    ("GET", "/v1/models/fake"): {"app", "ops"},
    ("GET", "/v2"): {"app", "other", "ops"},
    ("POST", "/v2/repository/index"): {"app", "other", "ops"},
    ("GET", "/metrics"): {"scraper", "ops"},
    ("GET", "/v2/logging"): {"ops"},
    ("POST", "/v2/logging"): {"ops"},
    ("GET", "/v2/trace/setting"): {"ops"},
    ("POST", "/v2/models/fake/trace/setting"): {"ops"},
    ("GET", "/models/fake/report"): {"ops"},
    ("GET", "/no/such/route"): {"app", "other", "ops", "scraper"},
}


@pytest.mark.parametrize(("method", "path"), FOR_KEYS)
def test_a_route_is_for_the_keys_of_its_role_and_model(
    served: Served, method: str, path: str
) -> None:
    assert served.status(method, path) == 401
    for key in served.secrets:
        found = served.status(method, path, key)
        if key in FOR_KEYS[method, path]:
            assert found not in (401, 403), key
        elif key in ("app", "other", "ops", "scraper"):
            assert found == 403, key


def test_a_model_cannot_be_loaded_without_an_admin_s_key(served: Served) -> None:
    for key in (None, "app"):
        found = served.status("POST", "/v2/repository/models/fake/load", key)
        assert found == (401 if key is None else 403)


@pytest.mark.parametrize("path", ["/v2/health/live", "/openapi.json"])
def test_probes_and_the_document_need_no_key(served: Served, path: str) -> None:
    assert served.status("GET", path) == 200
    assert served.status("GET", path, X_API_Key="nonsense") == 200


def test_both_headers_do_and_what_is_refused_says_how(served: Served) -> None:
    secret = served.secrets["app"]
    for headers in (
        {"Authorization": f"Bearer {secret}"}, {"Authorization": f"bearer  {secret}"},
        {"Authorization": f"Basic {b64encode(f'me:{secret}'.encode()).decode()}"},
        {"X_API_Key": secret}, {"X_API_Key": secret, "Authorization": f"Bearer {secret}"},
    ):  # fmt: skip
        assert served.ask("POST", INFER, BODY, **headers)[0] == 200
    for headers in (
        {}, {"Authorization": secret}, {"Authorization": f"Basic {secret}"}, {"X_API_Key": ""},
        {"X_API_Key": secret, "Authorization": f"Bearer {served.secrets['ops']}"},
    ):  # fmt: skip
        status, found, body = served.ask("POST", INFER, BODY, **headers)
        assert (status, body["code"]) == (401, "unauthorized")
        assert found["WWW-Authenticate"].startswith("Bearer")
        assert secret not in json.dumps(body)


def test_a_connection_goes_on_behind_a_refusal_on_the_fast_path(served: Served) -> None:
    good, bad = message(INFER, BODY, f"X-API-Key: {served.secrets['app']}"), message(INFER, BODY)
    with connected(served.settings.port) as connection:
        statuses = [connection.ask(each).status for each in (good, bad, good, bad, bad, good)]
    assert statuses == [200, 401, 200, 401, 401, 200]


def test_a_revoked_key_is_refused_on_a_known_connection(served: Served) -> None:
    asked = message(INFER, BODY, f"X-API-Key: {served.add('short-lived')}")
    with connected(served.settings.port) as connection:
        wait_until(lambda: connection.ask(asked).status == 200, 30, "the key counts")
        revoke(served.store, "short-lived", 1.0)
        wait_until(lambda: connection.ask(asked).status == 401, 30, "it counts no more")


def test_keys_see_their_own_models_and_requests(served: Served) -> None:
    def get(path: str, key: str, method: str = "GET") -> Reply:
        return served.ask(method, path, X_API_Key=served.secrets[key])

    assert get("/v1/models", "app")[2]["models"] == ["fake"]
    assert get("/v1/models", "other")[2]["models"] == []
    assert get("/v2/models/stats", "other")[2] == {"model_stats": []}
    assert get("/v2/repository/index", "other", "POST")[2] == []
    headers = {"X_API_Key": served.secrets["app"], "Prefer": "respond-async"}
    location = served.ask("POST", INFER, BODY, **headers)[2]["location"]
    assert get(location, "other")[0] == 404
    assert get(location, "other", "DELETE")[0] == 404
    assert get(f"{location}?wait=20", "app")[0] == get(location, "ops")[0] == 200


def test_an_idempotency_key_belongs_to_its_api_key(served: Served) -> None:
    computed = len(served.model.computed)
    for key in ("app", "ops", "app", "ops"):
        headers = {"X_API_Key": served.secrets[key], "Idempotency_Key": "the same"}
        assert served.ask("POST", INFER, BODY, **headers)[0] == 200
    assert len(served.model.computed) == computed + 2


def test_a_key_with_many_requests_delays_anothers_by_a_batch(served: Served) -> None:
    def ask(key: str, value: int, **headers: str) -> int:
        body = BODY.replace(b"[3, 4]", b"[%d, 0]" % value)
        return served.ask("POST", INFER, body, X_API_Key=served.secrets[key], **headers)[0]

    served.model.computed.clear()
    served.model.gate.clear()
    for value in range(1000, 1040):
        assert ask("app", value, Prefer="respond-async") == 202
    wait_until(served.model.busy, 30, "one is in flight")
    depth = served.model.depth()
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(ask, "ops", 1)
        wait_until(lambda: served.model.depth() == depth + 1, 30, "the other key's waits")
        served.model.gate.set()
        assert other.result() == 200
    wait_until(lambda: len(served.model.computed) == 41, 30, "all are computed")
    in_front = served.model.computed.index(1) - (40 - depth)
    # What came while nothing waited is of no turn.
    assert in_front <= served.model.spec.max_batch_size + 1


def test_the_names_of_instances_are_for_admins(served: Served) -> None:
    for key, name in (("app", ""), ("ops", "counting")):
        _, headers, body = served.ask("POST", INFER, BODY, X_API_Key=served.secrets[key])
        assert body["timings"]["instance"] == name
        assert f'desc="{name}"' in headers["Server-Timing"]


def test_what_the_model_raised_is_for_admins(served: Served) -> None:
    poison = BODY.replace(b"[3, 4]", b"[-1, 0]")
    for key, told in (("app", False), ("ops", True)):
        status, _, body = served.ask("POST", INFER, poison, X_API_Key=served.secrets[key])
        assert (status, body["code"]) == (500, "model_failed")
        assert ("as error " in body["error"]) is not told


def test_counts_by_key_are_in_the_metrics(served: Served) -> None:
    served.add("limited", rate="1/d")

    def asked() -> int:
        return served.status("POST", INFER, "limited")

    wait_until(lambda: asked() == 429, 30, "its rate is used up")
    status, headers, body = served.ask("POST", INFER, BODY, X_API_Key=served.secrets["limited"])
    assert (status, body["code"]) == (429, "rate_limited") and int(headers["Retry-After"]) > 80_000

    def text() -> str:
        return str(served.ask("GET", "/metrics", X_API_Key=served.secrets["scraper"])[2])

    assert 'ferry_key_requests_total{key="limited",outcome="admitted"} 1.0' in text()
    wait_until(lambda: 'key="limited",outcome="rate"' in text(), 30, "refusals are counted")


def test_foreign_hosts_and_pages_are_refused_on_every_way(served: Served) -> None:
    port = served.settings.port
    key = f"X-API-Key: {served.secrets['ops']}"
    lines = {
        403: [["Host: evil.example"], ["Host: localhost", "Origin: http://evil.example"],
              ["Host: localhost", "Sec-Fetch-Site: cross-site"]],
        400: [["Host: localhost", "Host: localhost"], ["Host: localhost", "Host: evil.example"],
              []],
        200: [["Host: localhost"], ["Host: localhost", "Origin: http://localhost"]],
    }  # fmt: skip
    for status, several in lines.items():
        for headers in several:
            head = [f"POST {INFER} HTTP/1.1", *headers, key, f"Content-Length: {len(BODY)}"]
            with connected(port) as connection:
                # Another request's head is known by then.
                assert connection.ask(message(INFER, BODY, key)).status == 200
                assert connection.ask("\r\n".join([*head, "", ""]).encode() + BODY).status == status


@pytest.mark.parametrize("path", ["//evil.example/v2", "/v2//models", "/docs", "/v2/", "/%2e%2e/"])
def test_no_redirect_names_the_host_that_was_asked(served: Served, path: str) -> None:
    _, headers, _ = served.ask("GET", path, X_API_Key=served.secrets["ops"], Host="localhost:1")
    assert "localhost" not in headers.get("Location", "") and "//" not in headers.get(
        "Location", ""
    )


def test_every_answer_is_safe_in_a_browser_and_names_no_version(served: Served) -> None:
    secret = served.secrets["ops"]
    for method, path in (("POST", INFER), ("GET", "/v2"), ("GET", "/docs/"), ("GET", "/nothing")):
        _, headers, _ = served.ask(
            method, path, BODY if method == "POST" else None, X_API_Key=secret
        )
        assert headers["Server"] == "ferry" and headers["X-Content-Type-Options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


def test_triton_s_clients_send_keys_as_headers(served: Served) -> None:
    headers = {"Authorization": f"Bearer {served.secrets['app']}"}
    given = triton_http.InferInput("x", [1, 2], "FP32")
    given.set_data_from_numpy(np.array([[3, 4]], np.float32))
    with triton_http.InferenceServerClient(f"127.0.0.1:{served.settings.port}") as client:
        assert client.infer("fake", [given], headers=headers).as_numpy("y").tolist() == [[6, 8]]
    with grpc_client(served.settings) as client:
        for name in ("authorization", "x-api-key"):
            value = headers["Authorization"] if name == "authorization" else served.secrets["app"]
            found = client.infer("fake", [row(3, 4)], headers={name: value})
            assert found.as_numpy("y").tolist() == [[6, 8]]


def test_grpc_wants_keys_where_http_does(served: Served) -> None:
    app = {"x-api-key": served.secrets["app"]}
    other = {"x-api-key": served.secrets["other"]}
    with grpc_client(served.settings) as client:
        assert client.is_server_live()
        client.is_server_ready()
        assert refused(client.get_server_metadata)[0] == "UNAUTHENTICATED"
        assert refused(client.infer, "fake", [row(3, 4)])[0] == "UNAUTHENTICATED"
        asked = (client.infer, "fake", [row(3, 4)])
        assert refused(*asked, headers=other)[0] == "PERMISSION_DENIED"
        for method in (client.unload_model, client.load_model, client.get_model_metadata):
            headers = app if method != client.get_model_metadata else other
            assert refused(method, "fake", headers=headers)[0] == "PERMISSION_DENIED"
        assert refused(client.get_log_settings, headers=app)[0] == "PERMISSION_DENIED"
        assert len(client.get_model_repository_index(headers=app).models) == 1
        assert len(client.get_model_repository_index(headers=other).models) == 0
        served.add("once", rate="1/d")
        once = {"x-api-key": served.secrets["once"]}
        wait_until(lambda: _code(client, once) != "UNAUTHENTICATED", 30, "it counts")
        wait_until(lambda: _code(client, once) == "RESOURCE_EXHAUSTED", 30, "used up")


def test_a_grpc_call_without_a_deadline_keeps_its_key_s_place_no_longer_than_its_request(
    served: Served,
) -> None:
    headers = {"x-api-key": served.add("narrow", concurrency=1)}
    key = next(key for key in served.store.read().values() if key.name == "narrow")
    places = AccessKeys(served.settings.key_prefix).active(key.id)
    served.model.gate.clear()
    with grpc_client(served.settings) as client, ThreadPoolExecutor(1) as threads:
        wait_until(
            lambda: not _code_of(client.is_model_ready, "fake", headers=headers), 30, "it counts"
        )
        asked = threads.submit(client.infer, "fake", [row(3, 4)], headers=headers)
        wait_until(lambda: served.model.redis.zcard(places) == 1, 30, "it has its place")
        ((_, until_ms),) = served.model.redis.zrange(places, 0, -1, withscores=True)
        left_seconds = until_ms / 1000 - time.time()
        served.model.gate.set()
        asked.result(60)

    longest = served.settings.request_timeout_seconds + LEASE_MARGIN_SECONDS
    assert LEASE_MARGIN_SECONDS < left_seconds < longest + 5


def _code(client: Any, headers: dict[str, str]) -> str:
    return _code_of(client.infer, "fake", [row(3, 4)], headers=headers)


def _code_of(ask: Any, *arguments: Any, **named: Any) -> str:
    from tritonclient.utils import InferenceServerException  # noqa: PLC0415

    try:
        ask(*arguments, **named)
    except InferenceServerException as error:
        return str(error.status()).removeprefix("StatusCode.")
    return ""
