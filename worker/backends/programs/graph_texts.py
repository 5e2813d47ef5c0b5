"""Tells whether the texts in an exported program's graph are such as torch.export writes.

torch evaluates some of them as Python, and imports others: names, sizes and operators are all that
they may be.
"""

from __future__ import annotations

import ast
import dataclasses
import operator
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch._export.serde import schema, serialize
from torch._export.serde.union import _Union
from torch.utils import _pytree as pytree

from shared.errors import BadModel

PREDISPATCH = "torch._functorch.predispatch"
"""Where the plain functions are that torch exports as operators."""
MAX_EXPRESSION = 10_000
EXPRESSION = re.compile(r"(?:[\w ()+\-*/%<>=&|~,.'\"]|!=)*", re.ASCII)
NAME = re.compile(r"[\w.]*")
ATTRIBUTE = re.compile(r"[^\"'\\\x00-\x1f]*")
"""The path of a weight: torch puts it into code between quotes."""
FUNCTION_NAMES = """
Symbol Dummy Integer Float Rational Add Mul Pow Min Max Abs Mod PythonMod FloorDiv CleanDiv CeilDiv
ModularIndexing Where CeilToInt FloorToInt LShift RShift PowByNatural FloatPow FloatTrueDiv
IntTrueDiv IsNonOverlappingAndDenseIndicator TruncToFloat TruncToInt RoundToInt RoundDecimal ToFloat
Identity Eq Ne Lt Le Gt Ge Equality Unequality StrictLessThan LessThan StrictGreaterThan GreaterThan
And Or Not Xor ITE Piecewise floor ceiling sqrt log exp
"""
FUNCTIONS = frozenset(FUNCTION_NAMES.split())
"""What sizes are computed with, torch's functions and those of sympy."""
OPAQUE = ("OpaqueUnaryFn_", "BitwiseFn_")
"""How the names of more of torch's begin."""
CALCULATION = (
    *(ast.Expression, ast.Name, ast.Load, ast.Constant, ast.Tuple, ast.Call, ast.keyword),
    *(ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare),
    *(ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
)
GUARDED = (*CALCULATION, ast.Subscript, ast.Attribute)
GUARD = re.compile(r"(?:[\w ()\[\]+\-*/%<>=&|~,.']|!=)*", re.ASCII)
SIZE_READERS = {"size", "stride", "storage_offset"}
"""The attributes in the guards of a program, which say what sizes it can compute with."""
ARGUMENT_KINDS = 2
"""The children of a function's arguments: those by position and those by name."""


def not_torchs(what: str, text: str) -> BadModel:
    """Return the error of a text that torch would not have written."""
    return BadModel(
        f"the program's {what} {text[:80]!r} is none that torch.export writes, it could run any "
        "code: export the model again"
    )


def check_texts(part: Any) -> None:
    """Raise BadModel if torch would run a text in this part of a graph as code."""
    if isinstance(part, dict):
        part = list(part.values())
    if isinstance(part, list):
        for each in part:
            check_texts(each)
    elif dataclasses.is_dataclass(part):
        _check_names(part)
        for name, value in _fields(part):
            _check_text(name, value)
            check_texts(value)


def _fields(part: Any) -> Iterator[tuple[str, Any]]:
    """Yield the fields that a part has: of a union, that is one."""
    if isinstance(part, _Union):
        yield str(part.type), part.value
    else:
        for field in dataclasses.fields(part):
            yield field.name, getattr(part, field.name)


def _check_text(field: str, text: Any) -> None:
    if not isinstance(text, str):
        return
    if field == "expr_str":
        _check_expression(text)
    elif field in {"target", "as_operator"}:
        _check_operator(text)
    elif field == "name" or field.endswith("_name"):
        allowed = NAME if field in {"name", "as_name"} else ATTRIBUTE
        if not allowed.fullmatch(text):
            raise not_torchs("name", text)


def _check_names(part: Any) -> None:
    """Check the names of arguments, which torch writes into the function that it makes."""
    if not isinstance(part, schema.ModuleCallSignature):
        return
    names, spec = list(part.forward_arg_names or []), pytree.treespec_loads(part.in_spec)
    if spec.num_children == ARGUMENT_KINDS and spec.child(1).type is dict:
        names += spec.child(1).context
    for name in names:
        if not NAME.fullmatch(str(name)):
            raise not_torchs("argument", str(name))


def _check_operator(name: str) -> None:
    """Raise BadModel unless a name is that of an operator; torch calls any function by its path."""
    own: Any = serialize
    found = own.GraphModuleDeserializer().deserialize_operator(name)
    if isinstance(found, torch._ops.OpOverload) and _names_a_file(found):
        raise BadModel(f"the program's operator {name!r} reads or writes a file of this machine")
    kinds = (
        str,  # not found, which torch says itself
        torch._ops.OpOverload,
        torch._ops.HigherOrderOperator,
        *own._registered_extension_types(),
    )
    if (
        isinstance(found, kinds)
        or found is operator.getitem
        or any(found is each for each in own._SYM_OPS)
    ):
        return
    if getattr(found, "__module__", "") not in {"math", PREDISPATCH}:
        raise not_torchs("operator", name)


def _names_a_file(operator: torch._ops.OpOverload) -> bool:
    """Tell whether an operator takes a file's name, as `aten::from_file` does, which may write."""
    arguments = operator._schema.arguments
    return any("str" in str(each.type) and "file" in each.name for each in arguments)


def _check_expression(text: str) -> None:
    """Raise BadModel unless an expression of sizes only computes; torch evaluates it as Python."""
    if not EXPRESSION.fullmatch(text) or not _all_nodes(text, CALCULATION):
        raise not_torchs("size", text)


def _all_nodes(text: str, kinds: tuple[type[ast.AST], ...]) -> bool:
    """Tell whether a text is an expression of these kinds that only computes."""
    if len(text) > MAX_EXPRESSION:
        return False
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(isinstance(node, kinds) and _computes(node) for node in ast.walk(tree))


def has_plain_guards(program: Any) -> bool:
    """Tell whether the checks of sizes that torch writes as code have only plain texts in them.

    Else it makes those checks without code, which takes some 0.3 ms for each call.
    """
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"]
    texts = [value for value in values if isinstance(value, str)]
    texts += _keys(program.call_spec.in_spec)
    return all(text.isidentifier() for text in texts) and all(
        GUARD.fullmatch(text) and _all_nodes(text, GUARDED) for text in program._guards_code
    )


def _keys(spec: Any) -> Iterator[str]:
    """Yield the keys of dictionaries among the arguments, and no name for other kinds of them."""
    if spec.type is dict:
        yield from map(str, spec.context)
    elif not spec.is_leaf() and spec.type not in {list, tuple}:
        yield ""
    for each in spec.children():
        yield from _keys(each)


def _computes(node: ast.AST) -> bool:
    """Tell whether a name, number or call is one of those that sizes are made of."""
    match node:
        case ast.Constant(value=str() as text):
            return text.isidentifier()  # of a symbol
        case ast.Constant():
            return isinstance(node.value, int | float)
        case ast.Name():
            return not node.id.startswith("__")
        case ast.Call(func=ast.Name(id=name)):
            return name in FUNCTIONS or name.startswith(OPAQUE)
        case ast.Call(func=ast.Attribute(attr=name)) | ast.Attribute(attr=name):
            return name in SIZE_READERS
    return not isinstance(node, ast.Call)
