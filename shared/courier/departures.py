"""Tells whether the client of a connection has hung up, without reading from it."""

from __future__ import annotations

import socket

_CONNECTED = frozenset({1, 3})
"""TCP_ESTABLISHED and TCP_SYN_RECV of Linux's net/tcp_states.h."""


def has_left(client: socket.socket) -> bool:
    """Ask the kernel for the connection's state: it is no longer open both ways, or closed here.

    A client that only shuts down its sending half counts as gone, as most HTTP servers have it.
    False for what is no TCP connection.
    """
    if not hasattr(socket, "TCP_INFO") or client.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    try:
        return client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] not in _CONNECTED
    except OSError:
        return True
