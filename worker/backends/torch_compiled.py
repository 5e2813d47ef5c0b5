"""Modules that torch has compiled: TorchScript archives, traced or scripted, and AOTI packages.

An AOTInductor package (`.pt2`) is a program of torch.export in machine code. Loading one runs what
is in it, so that wants FERRY_ALLOW_MACHINE_CODE. It was compiled for one kind of CPU: what that was
stands in the package beside the code, and is compared before that is loaded, for an instruction
that this CPU does not have ends the process.
"""

from __future__ import annotations

import ast
import json
import platform
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from shared.errors import BadModel
from shared.model_spec import ModelSpec
from worker.backends.base import wants_gpu
from worker.backends.torch_model import Argument, TorchBackend
from worker.devices import cpu_flags

FLAGS_KEY = "FERRY_CPU_FLAGS"
"""The entry of a package's metadata that `ferry export` adds."""
INSTRUCTION_SETS = re.compile(
    r"s?sse[0-9_a-z]*|avx[0-9_a-z]*|amx_[a-z0-9_]+|fma|f16c|bmi[12]|vaes|vpclmulqdq|gfni|abm|movbe|"
    r"asimd[a-z0-9]*|sve[a-z0-9_]*|i8mm|bf16"
)
"""The flags of a CPU that a compiler makes instructions for."""
BY_TORCHS_NAME = {
    "AVX2": "avx2", "AVX512": "avx512f", "AVX512_VNNI": "avx512_vnni", "AMX_TILE": "amx_tile",
    "AVX10_2": "avx10_2", "ASIMD": "asimd", "SVE": "sve",
}  # fmt: skip
METADATA = "_metadata.json"
FILE_OPERATORS = frozenset({"save", "from_file"})
"""All operators that take a file's name; a module's own attribute of such a name is refused too."""
FILE_WORD = re.compile(rb"\b(save|from_file|getattr)\b")
SHOWN = 4


class TorchScriptBackend(TorchBackend):
    """A TorchScript module in eval mode."""

    def __init__(self, spec: ModelSpec, file: Path, device: str) -> None:
        """Load `file`; raises RuntimeError when it is no TorchScript archive.

        Raises BadModel when its code would read or write other files.
        """
        target = torch.device(device)
        _check_files(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            load: Any = torch.jit.load  # has no types
            module: Any = load(str(file), map_location=target).eval()
        bring_constants(module, target)
        arguments = [
            Argument(
                each.name,
                has_default=each.has_default_value(),
                takes_none=each.type.kind() == "OptionalType",
                is_tensor=each.type.kind() == "TensorType",
            )
            for each in module.forward.schema.arguments[1:]
        ]
        super().__init__(spec, module.forward, arguments, target, module)


def bring_constants(module: Any, target: torch.device) -> None:
    """Have code that names a device name `target`: tracing writes down the one it ran on.

    subtle: before the first pass, from when on the graph is not looked at again. Calls are put in
    line first, so that those of functions and submodules are seen.
    """
    graph = module.forward.graph
    inlined = graph.copy()
    torch._C._jit_pass_inline(inlined)
    if _named_devices(inlined, target):
        torch._C._jit_pass_inline(graph)
        for node in _named_devices(graph, target):
            node.s_("value", str(target))


def _named_devices(graph: Any, target: torch.device) -> list[Any]:
    """Return the constants of a graph that name another device."""
    return [
        node
        for node in graph.findAllNodes("prim::Constant")
        if node.output().type().kind() == "DeviceObjType"
        and node.hasAttribute("value")
        and torch.device(node.s("value")) != target
    ]


def _check_files(file: Path) -> None:
    """Raise BadModel where the module's code calls an operator that takes the name of a file.

    Before it is loaded, for that may run some of it already.
    """
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if not entry.filename.endswith(".py"):
                continue
            if found := _file_operator(archive.read(entry)):
                raise BadModel(
                    f"the module's code calls {found}, which reads or writes files: "
                    "Ferry serves modules that only compute, export it without that"
                )


def _file_operator(code: bytes) -> str:
    """Return what code, which torch writes as Python, may reach a file by; empty for nothing.

    `getattr(self, "0")` is how torch writes the parts of a Sequential.
    """
    try:
        nodes = list(ast.walk(ast.parse(code)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        found = FILE_WORD.search(code)
        return found[1].decode() if found else ""
    calls = [node for node in nodes if isinstance(node, ast.Call) and _is_getattr(node.func)]
    names = [call.args[1] if len(call.args) > 1 else call for call in calls]
    if any(not isinstance(name, ast.Constant) for name in names) or len(calls) < sum(
        map(_is_getattr, nodes)
    ):
        return "getattr"
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    attributes |= {str(name.value) for name in names if isinstance(name, ast.Constant)}
    return next(iter(attributes & FILE_OPERATORS), "")


def _is_getattr(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "getattr"


class TorchAotiBackend(TorchBackend):
    """A compiled program on the CPU, or on the GPU that it was compiled for."""

    def __init__(self, spec: ModelSpec, file: Path, device: str) -> None:
        """Load `file`; raises BadModel where it was compiled for another machine."""
        target, metadata = torch.device(device), read_metadata(file)
        self.on_cpu_since = ""
        if metadata.get("AOTI_DEVICE_KEY") == "cpu" != target.type and not wants_gpu(spec):
            target, self.on_cpu_since = torch.device("cpu"), "the package was compiled for it"
        _check_machine(metadata, target)
        loader: Any = torch._C._aoti.AOTIModelPackageLoader(
            str(file), "model", True, 1, target.index if target.index is not None else -1
        )
        in_spec, out_spec = map(pytree.treespec_loads, loader.get_call_spec())
        if in_spec.num_leaves != len(spec.inputs):
            raise BadModel(
                f"the program takes {in_spec.num_leaves} tensors, the config declares the inputs "
                f"{[tensor.name for tensor in spec.inputs]}"
            )

        def call(*tensors: torch.Tensor) -> Any:
            return pytree.tree_unflatten(loader.boxed_run(list(tensors)), out_spec)

        super().__init__(spec, call, None, target)


def compiled_for() -> list[str]:
    """Return the instruction sets that code compiled on this machine may use."""
    return sorted(flag for flag in cpu_flags() if INSTRUCTION_SETS.fullmatch(flag))


def read_metadata(file: Path) -> dict[str, str]:
    """Return what a package says of the machine that it was compiled for, without loading it."""
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if name.endswith(METADATA)]
        found: dict[str, str] = {}
        for name in names:
            found |= json.loads(archive.read(name))
    return found


def _check_machine(metadata: dict[str, str], target: torch.device) -> None:
    """Raise BadModel naming what this machine lacks of what a package was compiled for."""
    compiled = metadata.get("AOTI_DEVICE_KEY", target.type)
    if compiled != target.type:
        raise BadModel(
            f"the package was compiled for {compiled}, and the instance runs on {target.type}: "
            "export it there again"
        )
    machine = metadata.get("AOTI_MACHINE", platform.machine())
    if machine != platform.machine():
        raise BadModel(
            f"the package was compiled for a CPU of the kind {machine}, this one is "
            f"{platform.machine()}: export it here again"
        )
    wanted = {BY_TORCHS_NAME.get(name, "") for name in metadata.get("AOTI_CPU_ISA", "").split()}
    wanted |= set(metadata.get(FLAGS_KEY, "").split())
    missing = sorted(filter(None, wanted - cpu_flags()))
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise BadModel(
            f"the package was compiled for a CPU with {', '.join(missing[:SHOWN])}{more}, which "
            "this one lacks: export it here again, or serve the program as exported or onnx"
        )
