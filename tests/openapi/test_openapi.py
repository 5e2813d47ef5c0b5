"""/openapi.json holds every route, and /docs/ shows it with nothing fetched from elsewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from threading import Thread

import pytest
from flask import Flask
from flask.testing import FlaskClient
from openapi_document import application, document, operations
from schemathesis.openapi import from_dict
from werkzeug.serving import WSGIRequestHandler, make_server

from api.openapi.document import FILE
from shared import errors
from tools.openapi.document import OPERATIONS, PAGES, describe, described_routes, text

NEVER_ANSWERED = {
    errors.MethodNotAllowed,  # of no method
    errors.ClientLeft,  # nobody reads it
    errors.BadModel,  # stands in the log
    errors.BadSetting,  # stops the start
    errors.ForeignPage,  # is for browsers: no program sends cookies of pages
}


@pytest.fixture
def client() -> FlaskClient:
    return application().test_client()


def test_the_document_is_openapi_3_1() -> None:
    assert document()["openapi"] == "3.1.0"
    assert document()["info"]["version"] == version("ferry")
    from_dict(document()).validate()


def test_the_document_is_what_make_openapi_writes() -> None:
    assert FILE.read_text(encoding="utf-8") == text(), "run `make openapi`"


def test_every_route_is_described() -> None:
    routes = {(rule.endpoint, method) for rule, method in described_routes(application())}

    assert routes <= OPERATIONS.keys()


def test_no_operation_is_described_that_has_no_route() -> None:
    routes = {(rule.endpoint, method) for rule, method in described_routes(application())}

    assert OPERATIONS.keys() <= routes


def test_only_pages_for_people_are_left_out() -> None:
    endpoints = {rule.endpoint for rule in application().url_map.iter_rules()}
    described = {rule.endpoint for rule, _ in described_routes(application())}

    assert endpoints - described == PAGES
    rooms = {endpoint.partition(".")[0] for endpoint in PAGES}
    assert rooms == {"static", "swagger_ui", "pages", "ops"}


def test_a_new_route_is_in_the_document_with_its_variables() -> None:
    app = Flask("new")
    app.add_url_rule("/v9/models/<name>/cats/<int:cat>", "cats", lambda: "", methods=["POST"])

    operation = describe(app)["paths"]["/v9/models/{name}/cats/{cat}"]["post"]

    names = [item["name"] for item in operation["parameters"]]
    assert names == ["cat", "name"]
    assert all(item["required"] and item["in"] == "path" for item in operation["parameters"])


def test_every_error_that_a_client_can_get_is_at_a_route() -> None:
    documented = {error for operation in OPERATIONS.values() for error in operation.errors}
    documented |= {errors.Unauthorized, errors.Forbidden, errors.UnknownHost}  # at the door
    documented |= {errors.RateLimited}

    assert documented == set(errors.all_errors()) - NEVER_ANSWERED


def test_every_operation_has_its_own_id_a_summary_and_a_tag() -> None:
    ids = [operation["operationId"] for _, _, operation in operations()]

    assert len(set(ids)) == len(ids)
    assert all(operation["summary"] and operation["tags"] for _, _, operation in operations())


def test_the_page_and_its_files_come_from_here(client: FlaskClient) -> None:
    page = client.get("/docs/").text
    named = re.findall(r'(?:src|href)="([^"]+)"', page)

    assert len(named) >= 4
    for path in named:
        assert path.startswith("/docs/")
        with client.get(path) as response:
            assert response.status_code == 200
    assert '"url": "/openapi.json"' in page
    assert '"validatorUrl": null' in page
    assert client.get("/docs").text == page


def test_the_browser_is_told_to_fetch_nothing_from_elsewhere(client: FlaskClient) -> None:
    policy = client.get("/docs/").headers["Content-Security-Policy"]

    assert policy.startswith("default-src 'self'; ")
    assert "http" not in policy and "*" not in policy


def test_an_unknown_page_is_answered_as_json(client: FlaskClient) -> None:
    response = client.get("/docs/../api/app.py")

    assert response.status_code == 404
    assert response.get_json()["code"] == "unknown_route"


class Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    """The address of a server with the pages; no Redis is needed for them."""
    server = make_server("127.0.0.1", 0, application(), threaded=True, request_handler=Quiet)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join(timeout=10)
    server.server_close()


def test_a_browser_shows_every_operation(address: str, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no Chromium here; on Debian: apt-get install chromium")
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}",
        "--disable-background-networking", "--virtual-time-budget=20000", "--dump-dom",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"{address}/docs/",
    ]  # fmt: skip

    shown = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True).stdout

    paths = set(re.findall(r'data-path="([^"]+)"', shown))
    assert paths == set(document()["paths"])
    assert shown.count("opblock-summary-method") == len(operations())
