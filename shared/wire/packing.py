"""Redis commands as bytes: large arguments are sent from where they are, not joined first.

fast: a tensor of half a megabyte would otherwise be copied three times on its way: into the
message, into the command, and into what is sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from hiredis import pack_command

from shared.messages import LARGE_BYTES, Buffer, Buffers


class PackedCommand(bytes):
    """fast: a command as it goes over the wire, for one that is sent again and again."""

    @classmethod
    def of(cls, *command: Any) -> PackedCommand:
        """Pack a command."""
        return cls(pack_command(command))


class PackedPrefix:
    """fast: the first arguments of commands that are sent often with others behind them."""

    def __init__(self, *arguments: Any) -> None:
        """Pack them once."""
        self.arguments = arguments
        self.packed = _packed(arguments)

    def then(self, *rest: Any) -> PrefixedCommand:
        """Return the command that goes on with `rest`."""
        return PrefixedCommand(self, rest)


class PrefixedCommand(NamedTuple):
    """A command whose first arguments are packed already."""

    prefix: PackedPrefix
    rest: tuple[Any, ...]


Command = tuple[Any, ...] | PackedCommand | PrefixedCommand


def pack(commands: Sequence[Command]) -> Iterable[Buffer]:
    """Return the commands as Redis reads them, in one buffer, or in several with large ones."""
    parts: list[Buffer] = []
    try:
        for command in commands:
            if isinstance(command, PackedCommand):
                parts.append(command)
            elif isinstance(command, PrefixedCommand):
                prefix, rest = command
                count = len(prefix.arguments) + len(rest)
                parts += (b"*%d\r\n" % count, prefix.packed, _packed(rest))
            else:
                parts.append(pack_command(command))
    except TypeError:  # fast: hiredis finds an argument in several buffers, we do not look for one
        return in_buffers(commands)
    return [parts[0] if len(parts) == 1 else b"".join(parts)]


def _packed(arguments: tuple[Any, ...]) -> memoryview:
    """Return arguments as they stand in a command, behind the line that says how many."""
    command = memoryview(pack_command(arguments))
    return command[len(b"*%d\r\n" % len(arguments)) :]


def in_buffers(commands: Sequence[Command]) -> Iterator[Buffer]:
    """Return the commands as Redis reads them, with each large buffer by itself, not copied.

    Source: https://redis.io/docs/latest/develop/reference/protocol-spec/#sending-commands-to-a-redis-server
    """
    small = bytearray()
    for command in commands:
        if isinstance(command, PackedCommand):
            small += command
            continue
        arguments = command
        if isinstance(command, PrefixedCommand):
            arguments = (*command.prefix.arguments, *command.rest)
        small += b"*%d\r\n" % len(arguments)
        for argument in arguments:
            parts = argument if isinstance(argument, Buffers) else (_bytes(argument),)
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
