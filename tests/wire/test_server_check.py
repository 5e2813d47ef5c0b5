"""A start at a server that Ferry cannot use ends with one sentence; what is away is waited for."""

from __future__ import annotations

import os
import re
import socketserver
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Thread

import acl_user
import pytest
from ferry_processes import ROOT, environment, free_port
from redis import Redis

from ferry.up.embedded_valkey import running
from shared.errors import BadSetting
from shared.settings import Settings
from shared.wire.client import NotTheMaster, connect
from shared.wire.server_check import check_server
from shared.wire.wire import open_wire

ENTRIES = {
    "worker": [sys.executable, "-m", "worker"],
    "grpc": [sys.executable, "-m", "api.rpc"],
    "api": [sys.executable, "-m", "gunicorn", "--config", "gunicorn.conf.py", "api.wsgi:app"],
    "jobs": [sys.executable, "-m", "jobs"],
    "dashboard": [sys.executable, "-m", "jobs.dashboard"],
    "ferry up": [sys.executable, "-m", "ferry", "up"],
}


@contextmanager
def listening(answers: dict[bytes, bytes], default: bytes = b"+OK\r\n") -> Iterator[str]:
    """Serve the URL of what answers each command by its first word, as no real server here does."""

    class Answer(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            skipped = 0
            while line := self.rfile.readline():
                words = list[bytes]()
                for _ in range(int(line[1:])):
                    size = int(self.rfile.readline()[1:])
                    words.append(self.rfile.read(size + 2)[:-2])
                if words[:2] == [b"CLIENT", b"REPLY"]:
                    skipped = 2
                skipped -= 1
                if skipped < 0:
                    self.wfile.write(answers.get(words[0].upper(), default))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answer) as server:
        server.daemon_threads = True
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"redis://:secret@127.0.0.1:{server.server_address[1]}/0"
        server.shutdown()


def told(**said: str) -> dict[bytes, bytes]:
    """Return the answers of a server that says this of itself."""
    text = "".join(f"{name}:{value}\r\n" for name, value in said.items()).encode()
    return {b"INFO": b"$%d\r\n%s\r\n" % (len(text), text)}


def refused(settings: Settings) -> str:
    with pytest.raises(BadSetting) as raised:
        check_server(settings)
    sentence = str(raised.value)
    assert "secret" not in sentence
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize("version", ["5.0.14", "6.0.16", "2.8.19"])
def test_an_old_redis_is_named_with_its_version(version: str) -> None:
    with listening(told(redis_version=version, redis_mode="standalone")) as url:
        sentence = refused(Settings(redis_url=url))

    assert re.fullmatch(
        rf"REDIS_URL: Redis {version} at redis://127\.0\.0\.1:\d+/0 is older than 6\.2, the oldest "
        r"that Ferry works with: upgrade it, or unset REDIS_URL to have one embedded",
        sentence,
    )


@pytest.mark.parametrize(
    "said",
    [
        {"redis_version": "6.2.0"},
        {"redis_version": "10.0.1"},
        {"redis_version": "7.2.4", "valkey_version": "9.1.2"},
        {"redis_version": "unstable"},
    ],
)
def test_a_version_that_suffices_is_not_refused_for_it(said: dict[str, str]) -> None:
    # Whatever it says, its scripts do nothing: the probe's reply is an error that has passed soon.
    answers = told(**said) | {b"EVALSHA": b"-LOADING it reads its file\r\n"}
    with listening(answers) as url:
        check_server(Settings(redis_url=url))


def test_a_sentinel_and_a_part_of_a_cluster_are_told_from_a_server() -> None:
    with listening(told(redis_version="7.2.4", redis_mode="sentinel")) as url:
        assert "redis+sentinel://host:26379/service" in refused(Settings(redis_url=url))
    for name in ("redis_mode", "server_mode"):
        with listening(told(redis_version="7.2.4", **{name: "cluster"})) as url:
            assert "redis+cluster://host:6379,host2:6379" in refused(Settings(redis_url=url))


@pytest.mark.parametrize("reply", [b"-ERR This instance has cluster support disabled\r\n",
                                   b"-NOPERM no permissions to run cluster|slots\r\n"])  # fmt: skip
def test_who_names_no_slots_is_no_node_of_a_cluster(reply: bytes) -> None:
    with listening(told(redis_version="7.2.4") | {b"CLUSTER": reply}) as url:
        sentence = refused(Settings(redis_url=url.replace("redis:", "redis+cluster:")[:-2]))

    assert "is no node of a cluster: " in sentence


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n"])
def test_what_speaks_another_protocol_is_no_redis(said: bytes) -> None:
    with listening({}, default=said) as url:
        assert "is no Redis" in refused(Settings(redis_url=url))


def test_a_server_that_is_away_or_reads_its_file_is_waited_for() -> None:
    for url in ("redis://127.0.0.1:1/0", "unix:///nowhere/valkey.sock"):
        check_server(Settings(redis_url=url))
    with listening({}, default=b"-LOADING it reads its file\r\n") as url:
        check_server(Settings(redis_url=url))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """A server of our own, whose users a test may change."""
    with running(tmp_path_factory.mktemp("v")) as valkey, connect(valkey.url) as redis:
        yield redis


def as_user(server: Redis, *rules: str, password: str = "pw") -> Settings:
    server.execute_command("ACL", "SETUSER", "bob", "reset", "on", ">pw", *rules)
    path = server.connection_pool.connection_kwargs["path"]
    return Settings(redis_url=f"unix://bob:{password}@{path}")


ALL = ("+@all", "~*", "&*")


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        ((*ALL, "-@scripting"), "SCRIPT LOAD"),
        ((*ALL, "-eval"), "EVAL"),
        ((*ALL, "-evalsha"), "EVALSHA"),
        ((*ALL, "-lpos"), "LPOS in a script"),
        ((*ALL, "-@blocking"), "BLPOP"),
        ((*ALL, "-client"), "CLIENT ID"),
        (("+@all", "~other:*"), "EVALSHA"),
        (("+@read", "~*"), "SCRIPT LOAD"),
    ],
)
def test_a_user_that_may_not_do_what_ferry_does_is_told_what(
    server: Redis, rules: tuple[str, ...], named: str
) -> None:
    sentence = refused(as_user(server, *rules))

    assert f"does not take {named}, which Ferry needs: " in sentence


def test_a_wrong_password_is_told(server: Redis) -> None:
    assert "invalid username-password pair" in refused(as_user(server, *ALL, password="other"))


def test_a_user_of_ferrys_own_keys_suffices_and_nothing_is_left_behind(server: Redis) -> None:
    server.flushall()

    check_server(as_user(server, "+@all", "~ferry:*"))
    check_server(as_user(server, "+@all", "-info", "~ferry:*"))

    assert server.keys() == []


def test_a_server_at_its_memory_limit_or_read_only_is_waited_for(server: Redis) -> None:
    settings = as_user(server, *ALL)
    server.config_set("maxmemory", "1")
    check_server(settings)
    server.config_set("maxmemory", "0")
    server.execute_command("REPLICAOF", "127.0.0.1", "1")
    (warning,) = check_server(settings)
    server.execute_command("REPLICAOF", "NO", "ONE")

    assert "is a replica and takes no writes" in warning
    assert check_server(settings) == []


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl", "allkeys-random"])
def test_a_server_that_drops_keys_when_it_is_full_is_refused(server: Redis, policy: str) -> None:
    settings = as_user(server, *ALL)
    server.config_set("maxmemory-policy", policy)
    check_server(settings)  # it has no limit

    server.config_set("maxmemory", "1gb")
    sentence = refused(settings)
    server.config_set("maxmemory", "0")
    server.config_set("maxmemory-policy", "noeviction")

    assert f"(maxmemory-policy {policy})" in sentence
    assert "set maxmemory-policy noeviction" in sentence


def test_a_server_that_writes_no_file_is_warned_of(server: Redis) -> None:
    server.config_set("appendonly", "no")
    (warning,) = check_server(as_user(server, *ALL))
    server.config_set("appendonly", "yes")

    assert "writes no append-only file" in warning


def test_a_server_that_has_become_a_replica_is_left(server: Redis) -> None:
    url = as_user(server, *ALL).redis_url
    with connect(url) as client:
        wire, first = open_wire(client), client.client_id()
        wire.send(("SET", "k", "1"))
        wire.reply()
        server.execute_command("REPLICAOF", "127.0.0.1", "1")

        with pytest.raises(NotTheMaster):
            client.set("k", "2")
        wire.send(("SET", "k", "2"), ("GET", "k"))
        with pytest.raises(NotTheMaster):
            wire.reply()
        with pytest.raises(NotTheMaster):
            client.eval("return redis.call('SET', KEYS[1], 'x')", 1, "k")
        server.execute_command("REPLICAOF", "NO", "ONE")

        assert not wire.is_open
        assert client.set("k", "3")
        assert client.client_id() != first


def test_a_server_that_cannot_flush_is_told_to_who_wants_it() -> None:
    unknown = b"-ERR unknown command 'WAITAOF'\r\n"
    with listening(
        told(redis_version="7.0.15") | {b"WAITAOF": unknown, b"EVALSHA": b"*0\r\n"}
    ) as url:
        check_server(Settings(redis_url=url))
        sentence = refused(Settings(redis_url=url, durable=True))

    assert (
        "does not take WAITAOF (Redis has it from 7.2), which Ferry needs: ERR unknown" in sentence
    )


def test_the_probe_calls_every_command_of_the_scripts() -> None:
    texts = {file.stem: file.read_text() for file in (ROOT / "shared" / "scripts").glob("*.lua")}
    probed = set(re.findall(r"\{'([A-Z]+)'", texts.pop("probe")))
    called = set(re.findall(r"redis\.p?call\([^)]*?'([A-Z]+)'", "".join(texts.values())))

    assert called - probed == {"PUBLISH"}  # who may not publish has its answers stored
    assert {name.lower() for name in called} <= acl_user.commands("ferry")
    assert not re.search(r"\bos\.\w+\(", "".join(texts.values()))  # from Redis 7.4 only


def ended(command: list[str], settings: Settings) -> subprocess.CompletedProcess[str]:
    """Run a process until it ends by itself; one that found the server slow is started again."""
    for attempt in range(3):
        with suppress(subprocess.TimeoutExpired):
            return subprocess.run(
                command,
                env=os.environ | environment(settings),
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=30 + 30 * attempt,
                check=False,
            )
    raise AssertionError(f"{command} goes on, three times")


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_point_stops_with_the_sentence(entry: str, tmp_path: Path) -> None:
    with listening(told(redis_version="5.0.14")) as url:
        settings = replace(
            Settings(),
            redis_url=url,
            models=str(tmp_path),
            state_dir=str(tmp_path),
            port=free_port(),
            grpc_port=free_port(),
            dashboard_port=free_port(),
        )
        done = ended(ENTRIES[entry], settings)

    assert done.returncode in {1, 2}
    assert "is older than 6.2, the oldest that Ferry works with" in done.stdout
    assert "Traceback" not in done.stdout
