"""Reads pickles without running them: their opcodes say what would be made of which classes.

Source of the opcodes: `pickletools` of the standard library, which only names them.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass, field
from typing import IO, Any

MAX_OPCODES = 400_000
MAX_BYTES = 64 << 20
"""Bounds on what is read of one pickle: a larger one is judged by its beginning."""
MAX_NAMES = 10_000
ARRAY_WRAPPER = "NumpyArrayWrapper"
"""joblib's stand-in for an array, whose raw bytes follow the opcode that builds it."""


@dataclass
class Thing:
    """A value as its pickle describes it: `kind` is a dotted class or function, or a plain type.

    `items` are the entries of a dictionary by their text keys, `state` those of an object's state.
    """

    kind: str
    text: str = ""
    items: dict[str, Thing] = field(default_factory=dict)
    state: dict[str, Thing] = field(default_factory=dict)
    parts: list[Thing] = field(default_factory=list)


@dataclass
class Pickle:
    """One pickle as far as it was read: `ended` by its STOP, or `cut` by the end of the file."""

    root: Thing
    classes: set[str] = field(default_factory=set)
    texts: set[str] = field(default_factory=set)
    ended: bool = False
    cut: bool = False


def read_pickle(stream: IO[bytes]) -> Pickle | None:
    """Read one pickle up to its STOP; None when the bytes are none from the beginning."""
    machine = _Machine()
    bounded: Any = _Bounded(stream)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(bounded)):
            machine.step(opcode, argument)
            if machine.in_array or count > MAX_OPCODES:
                break
    except (ValueError, IndexError, EOFError, OSError):
        if not machine.stack:
            return None
        machine.found.cut = bounded.at_end
    return machine.result()


class _Bounded:
    """The part of a file that `pickletools` may read, and whether it ran out of bytes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._left = MAX_BYTES
        self.at_end = False

    def read(self, size: int) -> bytes:
        found = self._stream.read(min(size, self._left))
        return self._counted(found, len(found) < size)

    def readline(self) -> bytes:
        found = self._stream.readline(self._left)
        return self._counted(found, not found.endswith(b"\n"))

    def _counted(self, found: bytes, is_short: bool) -> bytes:
        self._left -= len(found)
        self.at_end = self.at_end or (is_short and self._left > 0)
        return found


class _Machine:
    """The stack machine of pickle, over `Thing`s: it makes nothing and calls nothing."""

    def __init__(self) -> None:
        self.stack: list[Thing] = []
        self.memo: dict[int, Thing] = {}
        self.found = Pickle(Thing("unknown"))
        self.mark = Thing("mark")
        self.in_array = False

    def result(self) -> Pickle:
        if self.stack:
            self.found.root = self.stack[0]
        return self.found

    def step(self, opcode: Any, argument: Any) -> None:
        """Apply one opcode; those without a case of their own as `pickletools` describes them."""
        name: str = opcode.name
        own = getattr(self, f"_{name.lower()}", None)
        if own is not None:
            own(argument)
        elif name.endswith("PUT"):
            self.memo[argument] = self.stack[-1]
        elif name.endswith("GET"):
            self.stack.append(self.memo.get(argument, Thing("unknown")))
        elif isinstance(argument, str) and "UNICODE" in name:
            self._text(argument)
        else:
            self._described(opcode)

    def _text(self, argument: str) -> None:
        if len(self.found.texts) < MAX_NAMES:
            self.found.texts.add(argument[:100])
        self.stack.append(Thing("str", argument))

    def _described(self, opcode: Any) -> None:
        before = [each.name for each in opcode.stack_before]
        if "mark" in before:
            parts = self._to_mark()
            before = before[: before.index("mark")]
        else:
            parts = []
        parts = [self.stack.pop() for _ in before][::-1] + parts
        for each in opcode.stack_after:
            self.stack.append(Thing(each.name, parts=parts))

    def _to_mark(self) -> list[Thing]:
        found = []
        while (top := self.stack.pop()) is not self.mark:
            found.append(top)
        return found[::-1]

    def _mark(self, _: Any) -> None:
        self.stack.append(self.mark)

    def _pop(self, _: Any) -> None:
        self.stack.pop()

    def _dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _stop(self, _: Any) -> None:
        self.found.ended = True

    def _global(self, argument: str) -> None:
        dotted = argument.replace(" ", ".")
        self.found.classes.add(dotted)
        self.stack.append(Thing("global", dotted))

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._global(f"{module.text} {name.text}")

    def _inst(self, argument: str) -> None:
        parts = self._to_mark()
        self._global(argument)
        self._made(self.stack.pop(), parts)

    def _obj(self, _: Any) -> None:
        callee, *parts = self._to_mark()
        self._made(callee, parts)

    def _newobj(self, _: Any) -> None:
        arguments, callee = self.stack.pop(), self.stack.pop()
        self._made(callee, arguments.parts)

    def _newobj_ex(self, _: Any) -> None:
        self.stack.pop()
        self._newobj(None)

    _reduce = _newobj

    def _made(self, callee: Thing, parts: list[Thing]) -> None:
        """Push what a call makes: an instance of the class, also where a helper makes it."""
        if callee.text.endswith("._reconstructor") and parts:
            callee = parts[0]
        self.stack.append(Thing(callee.text or "unknown", parts=parts))

    def _binpersid(self, _: Any) -> None:
        """Push a tensor's storage, or the class that torch's old format wraps with its source."""
        parts = self.stack.pop().parts
        is_class = len(parts) > 1 and parts[0].text == "module"
        self.stack.append(parts[1] if is_class else Thing("persistent", parts=parts))

    def _setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set(self.stack[-1], [key, value])

    def _setitems(self, _: Any) -> None:
        pairs = self._to_mark()
        self._set(self.stack[-1], pairs)

    def _dict(self, _: Any) -> None:
        pairs = self._to_mark()
        self.stack.append(Thing("dict"))
        self._set(self.stack[-1], pairs)

    def _empty_dict(self, _: Any) -> None:
        self.stack.append(Thing("dict"))

    def _set(self, target: Thing, pairs: list[Thing]) -> None:
        for key, value in zip(pairs[::2], pairs[1::2], strict=False):
            if key.kind == "str" and len(target.items) < MAX_NAMES:
                target.items[key.text] = value

    def _append(self, _: Any) -> None:
        self.stack.pop()

    def _appends(self, _: Any) -> None:
        self._to_mark()

    _additems = _appends

    def _build(self, _: Any) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        for each in [state, *state.parts]:
            target.state.update(each.items)
        self.in_array = target.kind.endswith(ARRAY_WRAPPER)
