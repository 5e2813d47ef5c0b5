"""TLS to Redis: connections that say in one sentence why it fails, and looks at who speaks it."""

from __future__ import annotations

import socket
import ssl
from functools import cache
from pathlib import Path
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

TLS_LOOK_SECONDS = 1.0
WENT = (ssl.SSLEOFError, ssl.SSLZeroReturnError)
"""What a server that ends leaves behind, and one that wants a certificate of ours."""


class TlsFailed(RedisConnectionError):
    """A certificate does not do, or a file of them: no time mends that, and nothing was asked."""


@cache
def explaining(connection_class: type[Any]) -> type[Any]:
    """Return a kind of connection with TLS that raises what is wrong with it as TlsFailed."""

    class Explaining(connection_class):  # type: ignore[misc]
        def _connect(self) -> Any:
            try:
                return super()._connect()
            except WENT:
                raise
            except ssl.SSLError as error:
                raise TlsFailed(_sentence(error)) from error
            except TimeoutError as error:
                if "handshake" not in str(error):
                    raise
                raise RedisTimeoutError("nobody answers the TLS handshake") from error
            except OSError as error:
                files = (self.ca_certs, self.ca_path, self.certfile, self.keyfile)
                raise TlsFailed(unread) if (unread := _unread(files)) else error from error

        def on_connect_check_health(self, *arguments: Any, **named: Any) -> None:
            try:
                super().on_connect_check_health(*arguments, **named)
            except RedisConnectionError as error:
                # With TLS 1.3 a server that wants a certificate says so, or goes, only by now.
                cause = error.__context__
                if not isinstance(cause, ssl.SSLError | ConnectionResetError):
                    raise
                if not isinstance(cause, (*WENT, ConnectionResetError)):
                    raise TlsFailed(_sentence(cause)) from cause
                asked = "" if self.certfile else ", perhaps for want of ssl_certfile"
                raise RedisConnectionError(f"it ends the connection after TLS{asked}") from cause

    return Explaining


def _sentence(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message.rstrip('.')}"
    said = error.reason or str(error)
    return f"TLS fails: {said.lower().replace('_', ' ')}"


def _unread(files: tuple[str | None, ...]) -> str:
    """Return a sentence about the first file that cannot be read, empty when all can."""
    for file in filter(None, files):
        try:
            if Path(file).is_dir():
                list(Path(file).iterdir())
            else:
                Path(file).open("rb").close()
        except OSError as error:
            return f"the file {file} cannot be read: {error.strerror}"
    return ""


def speaks_tls(host: str, port: int) -> bool:
    """Tell whether what listens there answers a TLS handshake; nothing is trusted by that."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((host, port), TLS_LOOK_SECONDS) as opened:
            context.wrap_socket(opened).close()
    except OSError:
        return False
    return True


def speaks_plainly(host: str, port: int) -> bool:
    """Tell whether what listens there answers as Redis does without TLS."""
    try:
        with socket.create_connection((host, port), TLS_LOOK_SECONDS) as opened:
            opened.sendall(b"PING\r\n")
            return opened.recv(1) in {b"+", b"-"}
    except OSError:
        return False
