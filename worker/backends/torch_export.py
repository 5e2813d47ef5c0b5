"""Exported programs: `torch.export.save`d, files that end with .pt2.

A program is a graph without Python code, and torch keeps its plain tensors as raw bytes. All else
(subclasses of tensors, opaque objects) it pickles, and unpickles on loading: such a file runs
code, so it is refused. The graph itself is text that torch evaluates in part, so it is refused
as well unless it says nothing but names, sizes and operators. Imported by the instances that need
it only, for it is slow.
"""

from __future__ import annotations

import ast
import dataclasses
import operator
import os
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch._export.serde import schema, serialize
from torch._export.serde.union import _Union
from torch.export.graph_signature import ConstantArgument, InputKind, TensorArgument
from torch.export.passes import move_to_device_pass
from torch.export.pt2_archive import _package
from torch.utils import _pytree as pytree

from shared.errors import BadModel, BadModelOutput
from shared.model_spec import ModelSpec
from worker.backends.base import named_outputs
from worker.backends.torch_arrays import datatype_name
from worker.backends.torch_model import Argument, TorchBackend
from worker.repository.config.description import Described
from worker.repository.config.fitting import check_described
from worker.repository.file_kinds import AOTI

FORCE_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
FACTORIES = SimpleNamespace(
    **{each.__name__: each for each in (list, dict, set, tuple, int, float, str, bool)}
)
"""What a `defaultdict` among a program's arguments may make of a missing entry."""
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


class TorchExportBackend(TorchBackend):
    """An exported program. It has no modes to switch: it computes as it was exported."""

    def __init__(self, spec: ModelSpec, file: Path, device: str) -> None:
        """Load `file` without unpickling; raises BadModel or torch's own errors."""
        target = torch.device(device)
        program = load_program(file)
        if target.type != "cpu":
            program = move_to_device_pass(program, target)
        names, constants = _leaves(program)
        module = program.module(check_guards=_has_plain_guards(program))
        in_spec = program.call_spec.in_spec

        def call(*tensors: torch.Tensor) -> Any:
            given = iter(tensors)
            leaves = [next(given) if name else constants[at] for at, name in enumerate(names)]
            positional, keywords = pytree.tree_unflatten(leaves, in_spec)
            return module(*positional, **keywords)

        arguments = [Argument(name, is_tensor=True) for name in names if name]
        super().__init__(spec, call, arguments, target)
        self._check_tensors(spec, program)

    def _check_tensors(self, spec: ModelSpec, program: Any) -> None:
        """Raise BadModel unless the declared tensors are of the program's datatypes and sizes."""
        known = {node.name: node.meta.get("val") for node in program.graph.nodes}
        results = [known.get(name) for name in program.graph_signature.user_outputs]
        answer = pytree.tree_unflatten(results, program.call_spec.out_spec)
        try:
            outputs = named_outputs(answer, self._outputs)
        except BadModelOutput as error:
            raise BadModel(str(error)) from error
        inputs = {name: known.get(argument.name) for name, argument in self._arguments.items()}
        check_described(spec, _described(inputs), _described(outputs))


def _described(tensors: Mapping[str, Any]) -> dict[str, Described]:
    """Describe the tensors that a program computes with, sizes that are symbols as free."""
    return {
        name: Described(
            name,
            datatype_name(tensor.dtype),
            [size if isinstance(size, int) else -1 for size in tensor.shape],
        )
        for name, tensor in tensors.items()
        if isinstance(tensor, torch.Tensor)
    }


def _leaves(program: Any) -> tuple[list[str], list[Any]]:
    """Return the name of each tensor that the program takes, and the other leaves' values.

    Leaves are the values in the arguments once lists and dictionaries are taken apart. Those that
    were no tensors when it was exported are part of the program, and have no name here.
    """
    names: list[str] = []
    constants: list[Any] = []
    for leaf in program.graph_signature.input_specs:
        if leaf.kind is not InputKind.USER_INPUT:
            continue
        if isinstance(leaf.arg, TensorArgument):
            names.append(leaf.arg.name)
            constants.append(None)
        elif isinstance(leaf.arg, ConstantArgument):
            names.append("")
            constants.append(leaf.arg.value)
        else:
            raise BadModel(f"the program's input {leaf.arg.name!r} is a number, not a tensor")
    return names, constants


def load_program(file: Path) -> Any:
    """Return the ExportedProgram in `file`, on the CPU wherever it was exported.

    Raises BadModel when loading would run foreign code.
    """
    with _no_pickle(), _no_code(), _on_the_cpu():
        try:
            return torch.export.load(file)
        except pickle.UnpicklingError as error:
            raise BadModel(
                "the program holds pickled Python objects, which could run any code; export it "
                f"with plain tensors only ({str(error).splitlines()[0]})"
            ) from error


@contextmanager
def _no_pickle() -> Iterator[None]:
    """Keep torch.export.load from unpickling anything but tensors, as long as the block runs.

    subtle: it calls torch.load with weights_only=False for tensors of other classes, and falls back
    to that when the example inputs fail. torch's own variable overrules both; opaque objects go
    through pickle.loads, which is taken away from that module.
    """

    def refuse(_: bytes) -> Any:
        raise pickle.UnpicklingError("an opaque object")

    package: Any = _package
    before, its_pickle = os.environ.get(FORCE_WEIGHTS_ONLY), package.pickle
    os.environ[FORCE_WEIGHTS_ONLY] = "1"
    package.pickle = SimpleNamespace(loads=refuse, dumps=its_pickle.dumps)
    try:
        yield
    finally:
        package.pickle = its_pickle
        del os.environ[FORCE_WEIGHTS_ONLY]
        if before is not None:
            os.environ[FORCE_WEIGHTS_ONLY] = before


@contextmanager
def _on_the_cpu() -> Iterator[None]:
    """Have torch.export.load read each device in a program as the CPU, as long as the block runs.

    This machine may not have the one on which it was exported. Nor may tensors in it, as the
    example inputs, be loaded to that.
    """
    own: Any = serialize
    package: Any = _package
    everywhere: Any = torch
    before, load = own.deserialize_device, torch.load
    patched = [each for each in (own, package) if hasattr(each, "deserialize_device")]
    for module in patched:
        module.deserialize_device = lambda _: torch.device("cpu")
    everywhere.load = partial(load, map_location="cpu")
    try:
        yield
    finally:
        everywhere.load = load
        for module in patched:
            module.deserialize_device = before


@contextmanager
def _no_code() -> Iterator[None]:
    """Keep torch.export.load from running what a graph says as code, as long as the block runs.

    subtle: the check stands where torch has read the graph and made nothing of it yet, so there is
    no second reader of the archive that could see other bytes than torch does.
    """
    own: Any = serialize
    tree: Any = pytree
    package: Any = _package
    read, its_importlib, machine = own._bytes_to_dataclass, tree.importlib, package._load_aoti

    def checked(kind: Any, content: bytes) -> Any:
        found = read(kind, content)
        _check(found)
        return found

    own._bytes_to_dataclass = checked
    tree.importlib = SimpleNamespace(import_module=_factories)
    package._load_aoti = _refuse_machine_code
    try:
        yield
    finally:
        own._bytes_to_dataclass = read
        tree.importlib, package._load_aoti = its_importlib, machine


def _refuse_machine_code(*_: Any) -> Any:
    raise BadModel(AOTI.sentence)


def _factories(module: str) -> Any:
    if module != "builtins":
        raise _code("module", module)
    return FACTORIES


def _code(what: str, text: str) -> BadModel:
    return BadModel(
        f"the program's {what} {text[:80]!r} is none that torch.export writes, it could run any "
        "code: export the model again"
    )


def _check(part: Any) -> None:
    """Raise BadModel if torch would run a text in this part of a graph as code."""
    if isinstance(part, dict):
        part = list(part.values())
    if isinstance(part, list):
        for each in part:
            _check(each)
    elif dataclasses.is_dataclass(part):
        _check_names(part)
        for name, value in _fields(part):
            _check_text(name, value)
            _check(value)


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
            raise _code("name", text)


def _check_names(part: Any) -> None:
    """Check the names of arguments, which torch writes into the function that it makes."""
    if not isinstance(part, schema.ModuleCallSignature):
        return
    names, spec = list(part.forward_arg_names or []), pytree.treespec_loads(part.in_spec)
    if spec.num_children == ARGUMENT_KINDS and spec.child(1).type is dict:
        names += spec.child(1).context
    for name in names:
        if not NAME.fullmatch(str(name)):
            raise _code("argument", str(name))


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
        raise _code("operator", name)


def _names_a_file(operator: torch._ops.OpOverload) -> bool:
    """Tell whether an operator takes a file's name, as `aten::from_file` does, which may write."""
    arguments = operator._schema.arguments
    return any("str" in str(each.type) and "file" in each.name for each in arguments)


def _check_expression(text: str) -> None:
    """Raise BadModel unless an expression of sizes only computes; torch evaluates it as Python."""
    if not EXPRESSION.fullmatch(text) or not _all_nodes(text, CALCULATION):
        raise _code("size", text)


def _all_nodes(text: str, kinds: tuple[type[ast.AST], ...]) -> bool:
    """Tell whether a text is an expression of these kinds that only computes."""
    if len(text) > MAX_EXPRESSION:
        return False
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(isinstance(node, kinds) and _computes(node) for node in ast.walk(tree))


def _has_plain_guards(program: Any) -> bool:
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
