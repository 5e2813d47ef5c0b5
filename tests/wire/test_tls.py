"""TLS to a real Redis: served by who trusts it, one sentence with the cause for all others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path

import pytest
from ferry_processes import ROOT, environment, free_port, running_gunicorn, running_worker
from jobs_worker import running_jobs_worker
from redis.exceptions import ConnectionError as RedisConnectionError
from tls_redis import OPENSSL, REDIS, Certificates, TlsRedis, running_tls_redis
from waiting import wait_until

from samples.tiny import make
from shared.errors import BadSetting
from shared.settings import Settings
from shared.wire.client import connect, unavailable
from shared.wire.outage import lasts
from shared.wire.server_check import check_server
from shared.wire.tls import TlsFailed
from shared.wire.wire import open_wire

pytestmark = pytest.mark.skipif(
    None in (REDIS, OPENSSL), reason="needs Debian's redis-server, which has TLS, and openssl"
)
ENTRIES = {
    "worker": ["-m", "worker"],
    "api": ["-m", "gunicorn", "--config", "gunicorn.conf.py", "api.wsgi:app"],
    "grpc": ["-m", "api.rpc"],
    "jobs": ["-m", "jobs"],
    "dashboard": ["-m", "jobs.dashboard"],
}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def server(given: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsRedis]:
    with running_tls_redis(tmp_path_factory.mktemp("r") / "s", given) as server:
        yield server


def refused(url: str) -> str:
    with pytest.raises(BadSetting) as raised:
        check_server(Settings(redis_url=url))
    assert "\n" not in str(raised.value)
    assert "only-in-tests" not in str(raised.value)
    return str(raised.value)


def test_who_trusts_the_server_uses_it_on_both_ways(server: TlsRedis) -> None:
    check_server(Settings(redis_url=server.trusted_url))
    with connect(server.trusted_url) as client, closing(open_wire(client)) as wire:
        client.set("k", "v")
        wire.send(("GET", "k"), ("CLIENT", "INFO"))
        assert wire.reply() == b"v"
        assert f"laddr=127.0.0.1:{server.port}" in wire.reply().decode()


@pytest.mark.parametrize(
    ("options", "host", "cause"),
    [
        ([], "127.0.0.1", "its certificate is not trusted: self-signed certificate"),
        (["ssl_ca_certs={stranger}"], "127.0.0.1", "its certificate is not trusted: "),
        (["ssl_ca_certs={ca}"], "localhost", "certificate is not valid for 'localhost'"),
        (["ssl_ca_certs=/nowhere/ca.pem"], "127.0.0.1", "the file /nowhere/ca.pem cannot be read"),
        (["ssl_ca_certs={ca_key}"], "127.0.0.1", "TLS fails: no certificate or crl found"),
        (
            ["ssl_ca_certs={ca}", "ssl_certfile={server}", "ssl_keyfile={ca_key}"],
            "127.0.0.1", "TLS fails: key values mismatch",
        ),
    ],
)  # fmt: skip
def test_a_certificate_that_does_not_do_is_told_with_the_cause(
    server: TlsRedis, given: Certificates, options: list[str], host: str, cause: str
) -> None:
    files = {name: given.file(name) for name in ("ca", "stranger", "server")}
    url = server.url(*(each.format(**files, ca_key=given.file("ca", "key")) for each in options),
                     host=host)  # fmt: skip

    assert f"REDIS_URL: rediss://{host}:{server.port}/0: " in refused(url)
    assert cause in refused(url)
    with connect(url) as client, closing(open_wire(client)) as wire:
        with pytest.raises(TlsFailed, match=r"^(its|the file|TLS)") as raised:
            client.ping()
        with pytest.raises(TlsFailed):
            wire.send(("PING",))
    assert lasts(raised.value)
    assert unavailable(raised.value).message == "cannot reach Redis: TLS fails"


def test_a_port_with_tls_and_one_without_are_told_apart(
    server: TlsRedis, given: Certificates
) -> None:
    assert "speaks TLS: begin with rediss://" in refused(f"redis://127.0.0.1:{server.port}")
    without = f"rediss://127.0.0.1:{server.plain_port}?ssl_ca_certs={given.file('ca')}"
    assert "speaks no TLS: name its port for TLS" in refused(without)
    assert "Authentication required" in refused(f"redis://127.0.0.1:{server.plain_port}")


def test_a_server_that_wants_our_certificate_says_so(given: Certificates, tmp_path: Path) -> None:
    with running_tls_redis(tmp_path / "s", given, wants_ours=True) as server:
        with pytest.raises(RedisConnectionError, match=r"ssl_certfile|certificate required"):
            connect(server.trusted_url).ping()
        ours = f"ssl_certfile={given.file('server')}&ssl_keyfile={given.file('server', 'key')}"
        check_server(Settings(redis_url=f"{server.trusted_url}&{ours}"))


@pytest.fixture
def settings(server: TlsRedis, tmp_path: Path) -> Settings:
    make(tmp_path / "models" / "tiny")
    return Settings(
        redis_url=server.trusted_url, models=str(tmp_path / "models"), port=free_port(),
        grpc_port=free_port(), dashboard_port=free_port(),
    )  # fmt: skip


def test_api_worker_and_jobs_work_over_tls(server: TlsRedis, settings: Settings) -> None:
    with (
        running_worker(settings),
        running_gunicorn(settings),
        running_jobs_worker(settings),
        closing(HTTPConnection("127.0.0.1", settings.port, timeout=60)) as connection,
        server.admin() as admin,
    ):
        for _ in range(3):
            connection.request("POST", "/predict/tiny", json.dumps({"input_tensor": [[0.5] * 16]}))
            answer = connection.getresponse()
            assert "prediction" in json.loads(answer.read())
        wait_until(lambda: admin.scard("rq:workers"), 60, "the jobs worker waits for jobs")
        ways = {client["laddr"] for client in admin.client_list() if client["user"] == "default"}
        plain = f"127.0.0.1:{server.plain_port}"
        ours = sum(client["laddr"] == plain for client in admin.client_list())

    assert f"127.0.0.1:{server.port}" in ways
    assert ours == 1, "somebody but this test asks without TLS"


def test_every_process_stops_with_the_cause_in_one_line(
    server: TlsRedis, given: Certificates, settings: Settings
) -> None:
    url = server.url(f"ssl_ca_certs={given.file('stranger')}")
    environ = os.environ | environment(replace(settings, redis_url=url))
    started = {
        name: subprocess.Popen(
            [sys.executable, *command], env=environ, cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for name, command in ENTRIES.items()
    }  # fmt: skip
    said = {name: process.communicate(timeout=90)[0] for name, process in started.items()}

    for name, process in started.items():
        assert process.returncode in {1, 2}, name
        assert said[name].count("its certificate is not trusted: self-signed") == 1, name
        assert "Traceback" not in said[name]
