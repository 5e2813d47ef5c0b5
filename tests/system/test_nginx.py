"""The nginx of docker-compose.yml, run as it stands but for Docker's name server and its addresses.

Debian's nginx is older than the image's: it is told of each API by address, for it cannot ask for a
name again, and wants HTTP/2 said in another place.
"""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import grpc
import pytest
from waiting import wait_until

from ferry.up.up import PROJECT_ROOT

TEMPLATE = PROJECT_ROOT / "deploy" / "nginx" / "nginx.conf.template"
NGINX = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin")
USER = "user root;" if os.geteuid() == 0 else ""
"""Else root's workers become nobody, whom pytest's directories are closed to."""
LARGEST_BODY = 100_000

pytestmark = pytest.mark.skipif(NGINX is None, reason="there is no nginx here")


class Api(BaseHTTPRequestHandler):
    """Answers a body's size at once, and `/events` in pieces that wait for `may_go_on`."""

    protocol_version = "HTTP/1.1"
    may_go_on = threading.Event()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(f"{len(body)} {self.headers['Host']}".encode())

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"3\r\none\r\n")
        assert self.may_go_on.wait(30)
        self.wfile.write(b"3\r\ntwo\r\n0\r\n\r\n")

    def answer(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        return


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        return probe.getsockname()[1]


def configuration(directory: Path, ports: dict[str, int], apis: list[int], rpc: int) -> str:
    """Return the template's text as the image's entry point makes it, for the servers here."""
    servers = "".join(f"server 127.0.0.1:{port} max_fails=0; " for port in apis)
    text = TEMPLATE.read_text()
    for old, new in (
        ("${NGINX_LOCAL_RESOLVERS}", "127.0.0.1"),
        ("${FERRY_MAX_BODY_BYTES}", str(LARGEST_BODY)),
        ("${FERRY_JOB_UPLOAD_BYTES}", str(2 * LARGEST_BODY)),
        ("server api:8000 resolve max_fails=0;", servers),
        ("server grpc:8001 resolve max_fails=0;", f"server 127.0.0.1:{rpc};"),
        ("listen 8000 reuseport", f"listen 127.0.0.1:{ports['http']} reuseport"),
        ("listen 8001 reuseport", f"listen 127.0.0.1:{ports['grpc']} http2 reuseport"),
        ("http2 on;", ""),
        ("worker_rlimit_nofile 65536;", ""),
        ("/tmp/", f"{directory}/"),
        ("/var/cache/nginx/", f"{directory}/"),
        ("error_log /dev/stderr warn;", f"error_log {directory}/log warn;"),
    ):
        assert old in text, old
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="module")
def apis() -> Iterator[list[ThreadingHTTPServer]]:
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Api) for _ in range(2)]
    for server in servers:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield servers
    for server in servers:
        server.shutdown()
        server.server_close()


class Echo(grpc.GenericRpcHandler):
    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(lambda message, context: message)


@pytest.fixture(scope="module")
def rpc() -> Iterator[int]:
    server = grpc.server(ThreadPoolExecutor(2), handlers=[Echo()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None).wait()


@pytest.fixture(scope="module")
def nginx(
    apis: list[ThreadingHTTPServer], rpc: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, int]]:
    directory = tmp_path_factory.mktemp("nginx")
    with running_nginx(directory, [api.server_port for api in apis], rpc) as ports:
        yield ports


@contextmanager
def running_nginx(directory: Path, apis: list[int], rpc: int) -> Iterator[dict[str, int]]:
    """Yield the ports of one before APIs and a gRPC API, which has its log in `directory`."""
    ports = {"http": free_port(), "grpc": free_port()}
    file = directory / "nginx.conf"
    file.write_text(configuration(directory, ports, apis, rpc))
    command = [str(NGINX), "-c", str(file), "-p", str(directory), "-g", f"daemon off; {USER}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: is_open(ports["http"]) or process.poll() is not None, 30, "nginx")
        assert process.poll() is None, process.stderr and process.stderr.read()
        yield ports
    finally:
        process.terminate()
        process.communicate(timeout=30)


def is_open(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def post(connection: http.client.HTTPConnection, path: str, body: bytes) -> tuple[int, bytes]:
    connection.request("POST", path, body)
    response = connection.getresponse()
    return response.status, response.read()


def test_a_body_above_ferrys_limit_never_reaches_an_api(nginx: dict[str, int]) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", nginx["http"], timeout=30)) as client:
        fits = post(client, "/v2/models/m/infer", bytes(LARGEST_BODY))
        upload = post(client, "/jobs/predict", bytes(2 * LARGEST_BODY))
        too_large = post(client, "/v2/models/m/infer", bytes(LARGEST_BODY + 1))

    assert fits == (200, f"{LARGEST_BODY} 127.0.0.1:{nginx['http']}".encode())
    assert upload[0] == 200
    assert too_large[0] == 413


def test_events_are_passed_on_as_they_come(nginx: dict[str, int]) -> None:
    Api.may_go_on.clear()
    with closing(http.client.HTTPConnection("127.0.0.1", nginx["http"], timeout=30)) as client:
        client.request("GET", "/events")
        response = client.getresponse()
        first = response.read(3)
        Api.may_go_on.set()

        assert (first, response.read()) == (b"one", b"two")


def test_an_api_that_goes_away_under_load_fails_nobody(
    nginx: dict[str, int], apis: list[ThreadingHTTPServer]
) -> None:
    gone = threading.Event()
    statuses: list[int] = []

    def ask() -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", nginx["http"], timeout=30)) as client:
            after = 0
            while after < 50:
                statuses.append(post(client, "/predict/m", b"x")[0])
                after += gone.is_set()

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask) for _ in range(8)]
        wait_until(lambda: len(statuses) > 100, 30, "a hundred answers")
        apis[0].shutdown()
        apis[0].server_close()
        gone.set()
        for each in asked:
            each.result(timeout=60)

    assert set(statuses) == {200}


class Closing(Api):
    """Ends each first connection under the request that it has read."""

    asked: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        self.asked.append(self.path)
        if len(self.asked) > 1:
            super().do_POST()
        else:
            self.close_connection = True


@pytest.mark.parametrize(
    ("path", "status", "tries"), [("/predict/m", 200, 2), ("/jobs/predict", 502, 1)]
)
def test_what_found_no_other_api_is_asked_anew_if_it_only_computes(
    tmp_path: Path, rpc: int, path: str, status: int, tries: int
) -> None:
    Closing.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Closing) as api:
        threading.Thread(target=api.serve_forever, args=(0.01,), daemon=True).start()
        with (
            running_nginx(tmp_path, [api.server_port], rpc) as ports,
            closing(http.client.HTTPConnection("127.0.0.1", ports["http"], timeout=30)) as client,
        ):
            assert post(client, path, b"x")[0] == status
        api.shutdown()

    assert Closing.asked == [path] * tries


def test_what_was_never_sent_is_asked_anew_whatever_it_is(tmp_path: Path, rpc: int) -> None:
    """An API to which connections get no answer, as to an address that is gone, comes back."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, ExitStack() as full:
        port = listener.getsockname()[1]
        while True:
            waiting = full.enter_context(socket.socket())
            waiting.settimeout(0.5)
            try:
                waiting.connect(("127.0.0.1", port))
            except TimeoutError:
                break
        with running_nginx(tmp_path, [port], rpc) as ports, ThreadPoolExecutor(1) as pool:
            client = http.client.HTTPConnection("127.0.0.1", ports["http"], timeout=30)
            asked = pool.submit(post, client, "/jobs/predict", b"x")
            wait_until(lambda: "timed out" in (tmp_path / "log").read_text(), 30, "no connection")
            full.close()
            api = ThreadingHTTPServer(("127.0.0.1", port), Api, bind_and_activate=False)
            api.socket.close()
            api.socket = listener
            threading.Thread(target=api.serve_forever, args=(0.01,), daemon=True).start()

            assert asked.result(timeout=30)[0] == 200
            client.close()
            api.shutdown()


def test_grpc_goes_through(nginx: dict[str, int]) -> None:
    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(f"127.0.0.1:{nginx['grpc']}", options) as channel:
        answer = channel.unary_unary("/any.Service/Call")(b"x" * LARGEST_BODY * 2, timeout=30)

    assert answer == b"x" * LARGEST_BODY * 2
