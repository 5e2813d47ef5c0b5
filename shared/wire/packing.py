"""Redis commands as bytes: large arguments are sent from where they are, not joined first.

A tensor of half a megabyte would otherwise be copied three times on its way: into the message,
into the command, and into what is sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

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


class Opening:
    """The first arguments of commands that are sent again and again with others behind them."""

    def __init__(self, *arguments: Any) -> None:
        """Pack them once."""
        self.arguments = arguments
        self.packed = _packed(arguments)

    def then(self, *rest: Any) -> Continued:
        """Return the command that goes on with `rest`."""
        return Continued(self, rest)


class Continued(NamedTuple):
    """A command whose first arguments are packed already."""

    opening: Opening
    rest: tuple[Any, ...]


Command = tuple[Any, ...] | Packed | Continued


def pack(commands: Sequence[Command]) -> Iterable[Buffer]:
    """Return the commands as Redis reads them, in one buffer, or in several with large ones."""
    parts: list[Buffer] = []
    try:
        for command in commands:
            if isinstance(command, Packed):
                parts.append(command)
            elif isinstance(command, Continued):
                opening, rest = command
                count = len(opening.arguments) + len(rest)
                parts += (b"*%d\r\n" % count, opening.packed, _packed(rest))
            else:
                parts.append(pack_command(command))
    except TypeError:  # an argument in pieces
        return _in_pieces(commands)
    return [parts[0] if len(parts) == 1 else b"".join(parts)]


def _packed(arguments: tuple[Any, ...]) -> memoryview:
    """Return arguments as they stand in a command, behind the line that says how many."""
    command = memoryview(pack_command(arguments))
    return command[len(b"*%d\r\n" % len(arguments)) :]


def _in_pieces(commands: Sequence[Command]) -> Iterator[Buffer]:
    """Return the commands as Redis reads them, with each large buffer by itself, not copied.

    Source: https://redis.io/docs/latest/develop/reference/protocol-spec/#sending-commands-to-a-redis-server
    """
    small = bytearray()
    for command in commands:
        if isinstance(command, Packed):
            small += command
            continue
        arguments = command
        if isinstance(command, Continued):
            arguments = (*command.opening.arguments, *command.rest)
        small += b"*%d\r\n" % len(arguments)
        for argument in arguments:
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
