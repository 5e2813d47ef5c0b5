"""The addresses that only this machine reaches.

Apart from `protected`: gunicorn's own process looks them up before gevent replaces the library's
sockets, and must not import a client of Redis.
"""

from __future__ import annotations

import ipaddress
import socket

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_loopback(host: str) -> bool:
    """Tell whether only processes of this machine reach what listens on `host`."""
    try:
        found = {str(each[4][0]) for each in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return False
    addresses = [address_of(each) for each in found]
    return bool(addresses) and all(each is not None and each.is_loopback for each in addresses)


def address_of(text: str) -> Address | None:
    """Return an IP address, of a mapped one the IPv4 within; None for what is none."""
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found
