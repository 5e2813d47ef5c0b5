"""Pages for browsers: who gets them, and who may ask in their place."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from answers import answer, refusal
from flask.testing import FlaskClient
from registered import register, report_failure, spec

import api.pages
from api.app import create_app
from api.routes.page_guard import PAGE_COOKIE, PAGE_HEADER
from shared.model_spec import TensorSpec
from shared.settings import Settings

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
NUMBERS = TensorSpec(name="x", datatype="FP32", dims=(4,))


@pytest.fixture
def client(settings: Settings) -> FlaskClient:
    register(settings, spec("numbers", NUMBERS))
    return create_app(settings).test_client()


@pytest.mark.parametrize("accept", [None, "*/*", "application/json", "text/html;q=0.5, */*"])
def test_who_does_not_prefer_html_gets_json(client: FlaskClient, accept: str | None) -> None:
    found = client.get("/", headers={} if accept is None else {"Accept": accept})

    assert answer(found)["status"] == "alive"
    assert found.headers["Vary"] == "Accept"


def test_a_browser_gets_the_playground_with_nothing_from_elsewhere(client: FlaskClient) -> None:
    found = client.get("/", headers=BROWSER)

    assert found.mimetype == "text/html"
    assert 'data-model="numbers"' in found.text
    assert "script-src 'self'" in found.headers["Content-Security-Policy"]
    assert "unsafe" not in found.headers["Content-Security-Policy"]
    assert "style=" not in found.text
    assert "<script>" not in found.text
    assert client.get("/v2", headers=BROWSER).mimetype == "application/json"


def test_hostile_names_and_reasons_are_text(settings: Settings) -> None:
    hostile = "<img src=x onerror=alert(1)>\"'"
    register(settings, spec(hostile, NUMBERS))
    report_failure(settings, f"{hostile}2", hostile)

    html = create_app(settings).test_client().get("/", headers=BROWSER).text

    assert "<img src=x" not in html
    assert "&lt;img src=x onerror=alert(1)&gt;&#34;&#39;" in html


def test_without_redis_the_page_says_so() -> None:
    client = create_app(Settings(redis_url="redis://127.0.0.1:1")).test_client()

    assert "Redis is away" in client.get("/", headers=BROWSER).text


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {PAGE_HEADER: "made up"},
        {PAGE_HEADER: "right", "Origin": "https://elsewhere.example"},
        {PAGE_HEADER: "right", "Origin": "null"},
    ],
)
def test_a_foreign_page_can_do_nothing(client: FlaskClient, headers: dict[str, str]) -> None:
    client.set_cookie(PAGE_COOKIE, "right")

    found = client.post("/pages/burst?count=2&to=/predict/numbers", headers=headers)

    refusal(found, 403, "foreign_page")


def test_a_name_from_elsewhere_that_leads_to_loopback_gets_no_page(client: FlaskClient) -> None:
    refusal(client.get("/", headers={**BROWSER, "Host": "x.example"}), 403, "unknown_host")
    assert client.get("/", headers={**BROWSER, "Host": "[::1]:8000"}).status_code == 200


def test_a_name_of_ours_gets_the_page(settings: Settings) -> None:
    client = create_app(replace(settings, hosts="ferry.example")).test_client()

    assert client.get("/", headers={**BROWSER, "Host": "ferry.example"}).status_code == 200


def ours(client: FlaskClient) -> dict[str, str]:
    client.get("/", headers=BROWSER)
    cookie = client.get_cookie(PAGE_COOKIE)
    assert cookie is not None
    return {PAGE_HEADER: cookie.value, "Origin": "http://localhost"}


def test_copies_are_requests_like_any_other(client: FlaskClient) -> None:
    sent = client.post(
        "/pages/burst?count=3&to=/predict/numbers", headers=ours(client), json={"input_tensor": [1]}
    )

    answers = answer(sent)["answers"]
    assert [each["status"] for each in answers] == [400] * 3
    assert "shape" in answers[0]["error"]


@pytest.mark.parametrize(
    "query", ["count=0", "count=101", "count=x", "count=1&to=/v2/repository/models/m/unload"]
)
def test_other_bursts_are_refused(client: FlaskClient, query: str) -> None:
    query = query if "to=" in query else f"{query}&to=/predict/numbers"

    refusal(client.post(f"/pages/burst?{query}", headers=ours(client)))


def test_a_form_has_the_tensors_and_the_shape_of_an_example(client: FlaskClient) -> None:
    found: Any = answer(client.get("/pages/models/numbers"))

    assert found["form"] == "tensor"
    assert found["inputs"][0]["shape"] == [1, 4]
    refusal(client.get("/pages/models/other"), 404, "unknown_model")


STATIC = Path(api.pages.__file__).parent / "static"


def test_what_is_vendored_is_what_the_manifest_says() -> None:
    folder = STATIC / "vendored"
    manifest = json.loads((folder / "manifest.json").read_text())

    listed = {name: digest for each in manifest.values() for name, digest in each["files"].items()}
    found = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.iterdir()
        if file.name != "manifest.json"
    }
    assert found == listed
    assert all(each["version"] and each["licence"] for each in manifest.values())


@pytest.mark.parametrize("path", ["/", "/ops"])
def test_the_first_paint_is_small(client: FlaskClient, path: str) -> None:
    html = client.get(path, headers=BROWSER).text

    names, total = set(re.findall(r'(?:src|href)="/pages/static/([^"]+)"', html)), len(html)
    while names:
        name = names.pop()
        source = (STATIC / name).read_bytes()
        total += len(source)
        if name.endswith(".js") and "/" not in name:
            names |= set(re.findall(r'from "\./([^"]+)"', source.decode()))

    assert total < 100_000


def test_nothing_is_loaded_from_elsewhere() -> None:
    files = [file for file in STATIC.iterdir() if file.suffix in (".js", ".css")]

    sources = {file.name: re.sub(r"http://www.w3.org/\S+", "", file.read_text()) for file in files}
    assert len(sources) > 5
    assert not [name for name, source in sources.items() if re.search(r"https?://\w", source)]
    assert not [name for name, source in sources.items() if "innerHTML" in source]
