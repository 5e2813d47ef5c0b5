"""The `parameters` of a `config.pbtxt`: how Ferry reads its own, and the table of Triton's.

Triton's backends read parameters too. As fields of the proto they are honoured, refused or without
effect, and docs/repository.md shows the table. Sources: the READMEs of python_backend,
pytorch_backend and onnxruntime_backend at https://github.com/triton-inference-server.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from shared.model_spec import ELEMENTS_PARAMETER
from worker.repository.config.fields import HONOURED, NO_EFFECT, REFUSED

Number = TypeVar("Number", int, float)


class TritonParameter(NamedTuple):
    """A parameter of one of Triton's backends.

    `usual` are the values that ask for what happens anyway, of which nothing is said.
    """

    backend: str
    key: str
    treatment: Literal["honoured", "refused", "no effect"]
    said: str
    usual: tuple[str, ...] = ()


ON, OFF = ("true", "1", "yes"), ("false", "0", "no")
SPEED_OR_MEMORY = "speed or memory is the framework's own, answers are the same"
ON_CUDA = "an option of ONNX Runtime's CUDA provider"
SESSION = "the session has one thread between operators, and ONNX Runtime's own memory"
TRITON_PARAMETERS = (
    TritonParameter(
        "python", "EXECUTION_ENV_PATH", REFUSED,
        "a model runs in the worker's own Python: install there what the model imports",
    ),
    TritonParameter(
        "python", "TRITON_BATCH_STRATEGY_PATH", REFUSED,
        "no library decides what shares a batch: see dynamic_batching",
    ),
    TritonParameter(
        "python", "FORCE_CPU_ONLY_INPUT_TENSORS", NO_EFFECT,
        "tensors are always handed over in the machine's memory", ON,
    ),
    TritonParameter("pytorch", "INTRA_OP_THREAD_COUNT", HONOURED, "CPU threads within operators"),
    TritonParameter("pytorch", "NUM_THREADS", HONOURED, "likewise"),
    TritonParameter(
        "pytorch", "INTER_OP_THREAD_COUNT", NO_EFFECT, "an instance runs one pass at a time", OFF
    ),
    TritonParameter(
        "pytorch", "NUM_INTEROP_THREADS", NO_EFFECT, "an instance runs one pass at a time", OFF
    ),
    TritonParameter(
        "pytorch", "INFERENCE_MODE", NO_EFFECT,
        "passes always run in inference mode, which changes no answer", ON,
    ),
    TritonParameter("pytorch", "DISABLE_OPTIMIZED_EXECUTION", NO_EFFECT, SPEED_OR_MEMORY, OFF),
    TritonParameter("pytorch", "DISABLE_CUDNN", NO_EFFECT, SPEED_OR_MEMORY, OFF),
    TritonParameter("pytorch", "ENABLE_WEIGHT_SHARING", NO_EFFECT, SPEED_OR_MEMORY, OFF),
    TritonParameter("pytorch", "ENABLE_CACHE_CLEANING", NO_EFFECT, SPEED_OR_MEMORY, OFF),
    TritonParameter("pytorch", "ENABLE_JIT_EXECUTOR", NO_EFFECT, SPEED_OR_MEMORY),
    TritonParameter("pytorch", "ENABLE_JIT_PROFILING", NO_EFFECT, SPEED_OR_MEMORY),
    TritonParameter("pytorch", "ENABLE_TENSOR_FUSER", NO_EFFECT, SPEED_OR_MEMORY),
    TritonParameter("pytorch", "ENABLE_NVFUSER", NO_EFFECT, SPEED_OR_MEMORY),
    TritonParameter(
        "pytorch", "TORCH_COMPILE_OPTIONAL_PARAMETERS", NO_EFFECT, "no model is compiled on loading"
    ),
    TritonParameter("onnxruntime", "intra_op_thread_count", HONOURED, "CPU threads, 0: Ferry's"),
    TritonParameter("onnxruntime", "inter_op_thread_count", NO_EFFECT, SESSION, OFF),
    TritonParameter("onnxruntime", "execution_mode", NO_EFFECT, SESSION, OFF),
    TritonParameter("onnxruntime", "enable_mem_arena", NO_EFFECT, SESSION, ON),
    TritonParameter("onnxruntime", "enable_mem_pattern", NO_EFFECT, SESSION, ON),
    TritonParameter("onnxruntime", "cudnn_conv_algo_search", HONOURED, ON_CUDA),
    TritonParameter("onnxruntime", "gpu_mem_limit", HONOURED, ON_CUDA),
    TritonParameter("onnxruntime", "arena_extend_strategy", HONOURED, ON_CUDA),
    TritonParameter("onnxruntime", "do_copy_in_default_stream", HONOURED, ON_CUDA),
    TritonParameter(
        "onnxruntime", "memory.enable_memory_arena_shrinkage", HONOURED,
        "`cpu:0`, `gpu:0` or both: memory is given back behind each pass",
    ),
)  # fmt: skip
"""A model's own code may read any parameter besides."""
_TABLE = {(each.backend, each.key): each for each in TRITON_PARAMETERS}
TRITON_STYLE = re.compile(r"[A-Z][A-Z0-9_]*|(session|memory|optimization|ep)\..*|trt_.*")
"""The keys that Ferry's own never look like: they are meant for a backend of Triton's."""
MAX_GPU_MEMORY = "max_gpu_memory_bytes"
"""Ferry's own: what an instance may take of its GPU, 0 for all that is free."""
SWAP, SWAPS = "swap", ("overlap", "stop_first")
"""Ferry's own: whether the version that is replaced leaves before its successor is loaded."""
DRIFT, DRIFTS = "drift", ("on", "off")
"""Ferry's own: whether rows and answers are counted, where there is a reference for them."""
SAMPLE_BYTES, SAMPLE_CLEAR, SAMPLE_REDACT = "sample_bytes", "sample_clear", "sample_redact"
"""Ferry's own: how much of what is asked is kept on disk, and what of it is written as it is."""
CUDA_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "cudnn_conv_algo_search": ("EXHAUSTIVE", "HEURISTIC", "DEFAULT"),
    "arena_extend_strategy": ("kNextPowerOfTwo", "kSameAsRequested"),
    "do_copy_in_default_stream": ("0", "1"),
}
"""What Triton's numbers from 0 on are called in ONNX Runtime. Source: the README of Triton's
onnxruntime_backend, and https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html
"""
ARENA_SHRINKAGE = "memory.enable_memory_arena_shrinkage"
PIPELINE_DEPTH, DEEPEST = "pipeline_depth", 2
"""Ferry's own: how many batches an instance has in hand, of which one is computed."""
THREADS = ("INTRA_OP_THREAD_COUNT", "NUM_THREADS", "intra_op_thread_count")


def parameter_notes(backend: str, parameters: Mapping[str, str]) -> list[str]:
    """Return a sentence for each parameter of Triton's that is set without effect.

    `backend` is Triton's word. Raises ValueError naming one that is refused, its value, and why.
    """
    notes = []
    for key, value in parameters.items():
        row = _TABLE.get((backend, key))
        if row is None:
            if backend in {"pytorch", "onnxruntime"} and TRITON_STYLE.fullmatch(key):
                notes.append(f"parameters[{key}] {value!r} has no effect: Ferry does not know it")
        elif row.treatment == REFUSED:
            raise ValueError(f"parameters[{key}] {value!r} is not supported: {row.said}")
        elif row.treatment == NO_EFFECT and value.strip().lower() not in row.usual:
            notes.append(f"parameters[{key}] {value!r} has no effect: {row.said}")
    own_threads(backend, parameters)
    if backend == "onnxruntime":
        cuda_options(parameters)
        arena_shrinkage(parameters)
    if number(parameters, MAX_GPU_MEMORY, "0", int) < 0:
        raise ValueError(f"{MAX_GPU_MEMORY}: expected a number of bytes, or 0")
    if number(parameters, ELEMENTS_PARAMETER, "1", int) < 1:
        raise ValueError(f"{ELEMENTS_PARAMETER}: expected a number of elements, from 1")
    stops_first(parameters)
    is_monitored(parameters)
    pipeline_depth(parameters)
    sample_wish(parameters)
    return notes


def stops_first(parameters: Mapping[str, str]) -> bool:
    """Tell whether a model's versions take turns; raises ValueError for a word nobody knows."""
    swap = parameters.get(SWAP, SWAPS[0])
    if swap not in SWAPS:
        raise ValueError(f"{SWAP} {swap!r}: expected {' or '.join(SWAPS)}")
    return swap == SWAPS[1]


def is_monitored(parameters: Mapping[str, str]) -> bool:
    """Tell whether drift is looked for; raises ValueError for a word nobody knows."""
    word = parameters.get(DRIFT, DRIFTS[0])
    if word not in DRIFTS:
        raise ValueError(f"{DRIFT} {word!r}: expected {' or '.join(DRIFTS)}")
    return word == DRIFTS[0]


def pipeline_depth(parameters: Mapping[str, str]) -> int:
    """Return how many batches an instance may have in hand; raises ValueError."""
    depth = number(parameters, PIPELINE_DEPTH, "1", int)
    if not 1 <= depth <= DEEPEST:
        raise ValueError(f"{PIPELINE_DEPTH} {depth}: expected 1 or {DEEPEST}")
    return depth


class SampleWish(NamedTuple):
    """The bytes of a version's samples on disk, 0 for none, and names of inputs and outputs.

    Texts that are `clear` are written as they are, what is `redacted` not at all.
    """

    max_bytes: int
    clear: frozenset[str] = frozenset()
    redacted: frozenset[str] = frozenset()


def sample_wish(parameters: Mapping[str, str]) -> SampleWish:
    """Return what a config wishes to have sampled; raises ValueError."""
    max_bytes = number(parameters, SAMPLE_BYTES, "0", int)
    if max_bytes < 0:
        raise ValueError(f"{SAMPLE_BYTES} {max_bytes}: expected a number of bytes, or 0")
    clear, redacted = (
        frozenset(filter(None, map(str.strip, parameters.get(key, "").split(","))))
        for key in (SAMPLE_CLEAR, SAMPLE_REDACT)
    )
    return SampleWish(max_bytes, clear, redacted)


def cuda_options(parameters: Mapping[str, str]) -> dict[str, str]:
    """Return the options of ONNX Runtime's CUDA provider in a config; raises ValueError."""
    found = {}
    for key, words in CUDA_OPTIONS.items():
        if key in parameters:
            at = number(parameters, key, "0", int)
            if not 0 <= at < len(words):
                raise ValueError(f"{key} {at}: expected a number from 0 to {len(words) - 1}")
            found[key] = words[at]
    limits = [number(parameters, key, "0", int) for key in (MAX_GPU_MEMORY, "gpu_mem_limit")]
    if min(limits) < 0:
        raise ValueError(f"gpu_mem_limit {min(limits)}: expected a number of bytes, or 0")
    if limit := limits[0] or limits[1]:
        found["gpu_mem_limit"] = str(limit)
    return found


def arena_shrinkage(parameters: Mapping[str, str], cuda_id: str = "") -> str:
    """Return the devices whose memory ONNX Runtime gives back behind each pass; raises ValueError.

    A `gpu` is the instance's own, which `cuda_id` numbers; without one there is none to name.
    """
    text = parameters.get(ARENA_SHRINKAGE)
    if text is None:
        return ""
    words = text.split(";")
    if not all(re.fullmatch(r"cpu:0|gpu:[0-9]+", word) for word in words):
        raise ValueError(f"{ARENA_SHRINKAGE} {text!r}: expected cpu:0, gpu:0 or cpu:0;gpu:0")
    own = {word if word == "cpu:0" else cuda_id and f"gpu:{cuda_id}" for word in words}
    return ";".join(sorted(filter(None, own)))


def own_threads(backend: str, parameters: Mapping[str, str]) -> int:
    """Return how many CPU threads a config gives its instances, 0 when it says nothing."""
    for key in THREADS:
        if key in parameters and (backend, key) in _TABLE:
            threads = number(parameters, key, "0", int)
            if threads < 0:
                raise ValueError(f"{key} {threads}: expected a number of threads, or 0")
            return threads
    return 0


def number(parameters: Mapping[str, str], key: str, default: str, kind: type[Number]) -> Number:
    """Return the one number in a parameter; raises ValueError naming key and value."""
    return numbers(parameters, key, default, kind, count=1)[0]


def numbers(
    parameters: Mapping[str, str], key: str, default: str, kind: type[Number], count: int = 0
) -> tuple[Number, ...]:
    """Return a parameter's numbers, `count` of them unless it is 0; raises ValueError."""
    text = parameters.get(key, default)
    try:
        found = tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"{key} {text!r}: expected {kind.__name__}s, separated by commas"
        ) from None
    if count and len(found) != count:
        raise ValueError(f"{key} {text!r}: {len(found)} numbers, expected {count}")
    return found


def plain_name(field: str, name: str) -> str:
    """Return a file's name; refuses those that would leave the model's own directory."""
    if Path(name).name != name or name in {".", ".."}:
        raise ValueError(f"{field} {name!r} must not contain a path")
    return name
