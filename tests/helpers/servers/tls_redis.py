"""A Redis with TLS and one without on another port, with certificates made for it: Debian's.

The embedded Valkey is built without TLS.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ferry_processes import free_port
from redis import Redis
from redis.exceptions import RedisError
from waiting import wait_until

REDIS, OPENSSL = shutil.which("redis-server"), shutil.which("openssl")
PASSWORD = "only-in-tests"


class Certificates:
    """A CA, one of nobody's, and a server's certificate for 127.0.0.1, each with its key."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        for name in ("ca", "stranger"):
            self._openssl("req", "-x509", *self._new(name), "-out", self.file(name))
        self._openssl("req", *self._new("server"), "-out", self.file("server", "csr"))
        (directory / "names").write_text("subjectAltName=IP:127.0.0.1")
        self._openssl(
            "x509", "-req", "-in", self.file("server", "csr"), "-CA", self.file("ca"),
            "-CAkey", self.file("ca", "key"), "-CAcreateserial", "-days", "2",
            "-extfile", "names", "-out", self.file("server"),
        )  # fmt: skip

    def file(self, name: str, kind: str = "crt") -> str:
        return str(self._directory / f"{name}.{kind}")

    def _new(self, name: str) -> list[str]:
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        return [*key, "-keyout", self.file(name, "key"), "-subj", f"/CN={name}"]

    def _openssl(self, *arguments: str) -> None:
        assert OPENSSL is not None
        subprocess.run(
            [OPENSSL, *arguments], cwd=self._directory, check=True, capture_output=True
        )  # fmt: skip


class TlsRedis:
    """A running server; `wants_ours` is whether it asks its clients for certificates too."""

    def __init__(self, directory: Path, given: Certificates, *, wants_ours: bool = False) -> None:
        self.port, self.plain_port = free_port(), free_port()
        self._given = given
        assert REDIS is not None
        with (directory / "redis.log").open("wb") as log:
            self.process = subprocess.Popen(
                [
                    REDIS, "--bind", "127.0.0.1", "--port", str(self.plain_port),
                    "--tls-port", str(self.port), "--tls-ca-cert-file", given.file("ca"),
                    "--tls-cert-file", given.file("server"),
                    "--tls-key-file", given.file("server", "key"),
                    "--tls-auth-clients", "yes" if wants_ours else "no",
                    "--save", "", "--dir", str(directory), "--requirepass", PASSWORD,
                ],
                stdout=log,
                stderr=log,
            )  # fmt: skip
        wait_until(self._answers, 30, "the Redis with TLS")

    def url(self, *options: str, host: str = "127.0.0.1") -> str:
        """Return a REDIS_URL with TLS, and with these options."""
        return f"rediss://:{PASSWORD}@{host}:{self.port}/0?{'&'.join(options)}"

    @property
    def trusted_url(self) -> str:
        return self.url(f"ssl_ca_certs={self._given.file('ca')}")

    def admin(self) -> Redis:
        return Redis(port=self.plain_port, password=PASSWORD)

    def _answers(self) -> bool:
        try:
            with self.admin() as client:
                return bool(client.ping())
        except RedisError:
            return False


@contextmanager
def running_tls_redis(
    directory: Path, given: Certificates, *, wants_ours: bool = False
) -> Iterator[TlsRedis]:
    """Run one until the block ends."""
    directory.mkdir()
    server = TlsRedis(directory, given, wants_ours=wants_ours)
    yield server
    server.process.kill()
    server.process.wait()
