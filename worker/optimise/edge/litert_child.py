"""Runs in the environment that has litert-torch, which is not Ferry's own: converts and answers.

    python litert_child.py convert PROGRAM.pt2 DIRECTORY    FP32 and dynamic INT8, and what is in
                                                            each as description.json
    python litert_child.py serve MODEL.tflite               answers on its standard streams

A message is its length in 8 bytes and an npz archive: one of inputs is answered with one of
outputs. It imports nothing of Ferry.
"""

from __future__ import annotations

import io
import json
import os
import sys
from importlib import metadata
from typing import Any, BinaryIO

import numpy as np

ONE_MODEL = "serving_default"
FILES, DESCRIPTION = ("model.tflite", "model.int8.tflite"), "description.json"
MADE_WITH = ("litert-torch", "ai-edge-litert", "ai-edge-quantizer", "torch")


def convert(program_file: str, directory: str) -> None:
    """Write a program of torch.export, whose inputs are keywords, as TFLite in both precisions."""
    import litert_torch  # type: ignore[import-not-found]  # noqa: PLC0415
    import torch  # noqa: PLC0415

    program = torch.export.load(program_file)
    assert program.example_inputs is not None, "it was saved with them"
    keywords = program.example_inputs[1]
    plain, small = (os.path.join(directory, name) for name in FILES)
    litert_torch.convert(program.module(), sample_kwargs=keywords).export(plain)
    found = {FILES[0]: _description(plain)}
    try:
        _quantise(plain, small)
        found[FILES[1]] = _description(small)
    except Exception as error:  # a border: FP32 is a bundle without it, which is said
        found[FILES[1]] = {"fault": f"{type(error).__name__}: {error}"}
    with open(os.path.join(directory, DESCRIPTION), "w", encoding="utf-8") as stream:
        json.dump(found, stream)


def _quantise(source: str, target: str) -> None:
    """Write a TFLite file with weights of 8 bits, and ranges found in each pass."""
    from ai_edge_quantizer import (  # type: ignore[import-not-found]  # noqa: PLC0415
        quantizer,
        recipe,
    )

    made = quantizer.Quantizer(source)
    made.load_quantization_recipe(recipe.dynamic_wi8_afp32())
    made.quantize().export_model(target)


def serve(file: str, answers: BinaryIO) -> None:
    """Answer until the input ends."""
    from ai_edge_litert.interpreter import (  # type: ignore[import-not-found]  # noqa: PLC0415
        Interpreter,
    )

    runner = Interpreter(file, num_threads=1).get_signature_runner(ONE_MODEL)
    types = {name: each["dtype"] for name, each in runner.get_input_details().items()}
    while (arrays := receive(sys.stdin.buffer)) is not None:
        answer = runner(**{name: array.astype(types[name]) for name, array in arrays.items()})
        send(answers, answer)


def _description(file: str) -> dict[str, Any]:
    """Return tensors, with their places among the interpreter's own, operators and versions."""
    from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415

    interpreter = Interpreter(file)
    runner = interpreter.get_signature_runner(ONE_MODEL)
    sides = {
        "inputs": (runner.get_input_details(), interpreter.get_input_details()),
        "outputs": (runner.get_output_details(), interpreter.get_output_details()),
    }
    found: dict[str, Any] = {"operators": _operators(file)}
    for side, (named, listed) in sides.items():
        places = {each["index"]: at for at, each in enumerate(listed)}
        found[side] = {
            name: {
                "numpy_type": np.dtype(each["dtype"]).name,
                "shape": [int(size) for size in each["shape"]],
                "index": places[each["index"]],
            }
            for name, each in named.items()
        }
    return found | {"versions": {name: metadata.version(name) for name in MADE_WITH}}


def _operators(file: str) -> list[dict[str, Any]]:
    """Return each operator with the types of its tensors and how often it stands in the file."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType  # noqa: PLC0415

    # Else what is given to XNNPACK is one operator, which is none of the file's.
    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(file, experimental_op_resolver_type=plain)
    types = {
        each["index"]: np.dtype(each["dtype"]).name for each in interpreter.get_tensor_details()
    }
    counts: dict[tuple[str, tuple[str, ...]], int] = {}
    for each in interpreter._get_ops_details():
        used = sorted({types[at] for at in each["inputs"] if at in types})
        key = (each["op_name"], tuple(used))
        counts[key] = counts.get(key, 0) + 1
    return [
        {"operator": name, "types": list(used), "count": count}
        for (name, used), count in sorted(counts.items())
    ]


def send(stream: BinaryIO, arrays: dict[str, Any]) -> None:
    """Write one message."""
    content = io.BytesIO()
    np.savez(content, **arrays)
    stream.write(len(content.getvalue()).to_bytes(8, "big") + content.getvalue())
    stream.flush()


def receive(stream: BinaryIO) -> dict[str, Any] | None:
    """Read one message, None at the end."""
    head = stream.read(8)
    if len(head) < 8:  # noqa: PLR2004
        return None
    with np.load(io.BytesIO(stream.read(int.from_bytes(head, "big"))), allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def main() -> None:
    """Do what the arguments say."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries write to the standard output as they like
    what, *rest = sys.argv[1:]
    if what == "serve":
        serve(rest[0], answers)
    else:
        convert(*rest)


if __name__ == "__main__":
    main()
