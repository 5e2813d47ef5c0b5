"""Whether an address is there and nobody listens at a port of it."""

from __future__ import annotations

import socket


def try_to_listen(host: str, port: int) -> None:
    """Listen there for a moment; raises socket.gaierror for no address of ours, OSError else."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
