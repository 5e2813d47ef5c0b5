"""Redis commands as bytes: large arguments are sent from where they are, not joined first.

A tensor of half a megabyte would otherwise be copied three times on its way: into the message,
into the command, and into what is sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from hiredis import pack_command

LARGE_BYTES = 64 * 1024
"""From here on a copy costs more than another system call."""
Buffer = bytes | memoryview


class Pieces(tuple[Buffer, ...]):
    """One argument of a command, in several buffers."""

    __slots__ = ()


class Packed(bytes):
    """A command as it goes over the wire, for one that is sent again and again."""

    @classmethod
    def of(cls, *command: Any) -> Packed:
        """Pack a command."""
        return cls(pack_command(command))


Command = tuple[Any, ...] | Packed


def pack(commands: Iterable[Command]) -> Iterable[Buffer]:
    """Return the commands as Redis reads them, in one buffer, or in several with large ones."""
    try:
        return [b"".join([c if isinstance(c, Packed) else pack_command(c) for c in commands])]
    except TypeError:  # an argument in pieces
        return _in_pieces(commands)


def _in_pieces(commands: Iterable[Command]) -> Iterator[Buffer]:
    """Return the commands as Redis reads them, with each large buffer by itself, not copied.

    Source: https://redis.io/docs/latest/develop/reference/protocol-spec/#sending-commands-to-a-redis-server
    """
    small = bytearray()
    for command in commands:
        if isinstance(command, Packed):
            small += command
            continue
        small += b"*%d\r\n" % len(command)
        for argument in command:
            parts = argument if isinstance(argument, Pieces) else (_bytes(argument),)
            small += b"$%d\r\n" % sum(map(len, parts))
            for part in parts:
                if len(part) < LARGE_BYTES:
                    small += part
                    continue
                yield bytes(small)
                yield part
                small.clear()
            small += b"\r\n"
    yield bytes(small)


def _bytes(argument: str | bytes | float) -> bytes:
    return argument if isinstance(argument, bytes) else str(argument).encode()
