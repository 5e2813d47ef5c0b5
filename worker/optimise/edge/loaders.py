"""The loaders of a bundle: some twenty lines each in Python, Kotlin and Swift."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from string import Template
from typing import Any

import numpy as np

KOTLIN_TYPES = {
    "FP32": "FLOAT", "FP64": "DOUBLE", "FP16": "FLOAT16", "INT8": "INT8", "INT16": "INT16",
    "INT32": "INT32", "INT64": "INT64", "UINT8": "UINT8", "BOOL": "BOOL",
}  # fmt: skip
"""Names of `ai.onnxruntime.OnnxJavaType`."""
SWIFT_TYPES = {
    "FP32": "float", "INT8": "int8", "UINT8": "uInt8", "INT32": "int32", "UINT32": "uInt32",
    "INT64": "int64", "UINT64": "uInt64",
}  # fmt: skip
"""Names of `ORTTensorElementDataType`."""

PYTHON_LOADER = '''\
"""$model/$version, run by $runtime: pip install $package numpy"""

import json
from pathlib import Path

import numpy as np
$import_line

HERE = Path(__file__).parent


class Model:
    """Takes arrays by input name, in shape and range as manifest.json says."""

    def __init__(self, file: str = "$file") -> None:
        manifest = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
        self._types = {each["name"]: each["numpy_type"] for each in manifest["inputs"]}
        self._outputs = [each["name"] for each in manifest["outputs"]]
        $open

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        feeds = {name: np.ascontiguousarray(a, self._types[name]) for name, a in inputs.items()}
        $run
'''
PYTHON_PARTS = {
    "ort": {
        "runtime": "ONNX Runtime",
        "import_line": "import onnxruntime",
        "open": "self._session = onnxruntime.InferenceSession(\n"
        '            str(HERE / file), providers=["CPUExecutionProvider"]\n        )',
        "run": "return dict(zip(self._outputs, self._session.run(self._outputs, feeds)))",
    },
    "tflite": {
        "runtime": "LiteRT",
        "import_line": "from ai_edge_litert.interpreter import Interpreter",
        "open": "self._runner = Interpreter(str(HERE / file)).get_signature_runner()",
        "run": "return dict(self._runner(**feeds))",
    },
}
KOTLIN_LOADERS = {
    "ort": """\
// $model/$version: implementation("com.microsoft.onnxruntime:onnxruntime-android:$package_version")
import ai.onnxruntime.*
import java.nio.ByteBuffer

class Model(file: ByteArray) : AutoCloseable {
    private val environment = OrtEnvironment.getEnvironment()
    private val session = environment.createSession(file, OrtSession.SessionOptions())
    private val types = mapOf($types)
    private val outputs = setOf($outputs)

    /** Takes direct buffers in native byte order, each with its shape: manifest.json has both. */
    fun run(inputs: Map<String, Pair<ByteBuffer, LongArray>>): Map<String, ByteBuffer> {
        val tensors = inputs.mapValues { (name, given) ->
            OnnxTensor.createTensor(environment, given.first, given.second, types.getValue(name))
        }
        try {
            return session.run(tensors, outputs).use { answer ->
                outputs.associateWith { (answer.get(it).get() as OnnxTensor).byteBuffer }
            }
        } finally {
            tensors.values.forEach { it.close() }
        }
    }

    override fun close() = session.close()
}
""",
    "tflite": """\
// $model/$version: implementation("com.google.ai.edge.litert:litert:1.4.0")
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.tensorflow.lite.Interpreter

class Model(file: File) : AutoCloseable {
    private val interpreter = Interpreter(file)
    private val outputBytes = mapOf($output_bytes)

    /** Takes direct buffers in native byte order: manifest.json has shapes and types. */
    fun run(inputs: Map<String, ByteBuffer>): Map<String, ByteBuffer> {
        val outputs = outputBytes.mapValues {
            ByteBuffer.allocateDirect(it.value).order(ByteOrder.nativeOrder())
        }
        interpreter.runSignature(inputs, outputs, "serving_default")
        outputs.values.forEach { it.rewind() }
        return outputs
    }

    override fun close() = interpreter.close()
}
""",
}
SWIFT_LOADERS = {
    "ort": """\
// $model/$version: pod "onnxruntime-objc", "$package_version"
import Foundation
import onnxruntime_objc

final class Model {
    private let environment: ORTEnv
    private let session: ORTSession
    private let types: [String: ORTTensorElementDataType] = [$types]

    init(path: String) throws {
        environment = try ORTEnv(loggingLevel: .warning)
        session = try ORTSession(env: environment, modelPath: path, sessionOptions: nil)
    }

    /// Takes bytes with their shapes: manifest.json has both.
    func run(_ inputs: [String: (NSMutableData, [NSNumber])]) throws -> [String: Data] {
        var tensors: [String: ORTValue] = [:]
        for (name, (data, shape)) in inputs {
            tensors[name] = try ORTValue(tensorData: data, elementType: types[name]!, shape: shape)
        }
        let answer = try session.run(
            withInputs: tensors, outputNames: [$outputs], runOptions: nil)
        return try answer.mapValues { try $$0.tensorData() as Data }
    }
}
""",
    "tflite": """\
// $model/$version: pod "TensorFlowLiteSwift"
import Foundation
import TensorFlowLite

final class Model {
    private let interpreter: Interpreter
    private let inputs = [$input_places]
    private let outputs = [$output_places]

    init(path: String) throws {
        interpreter = try Interpreter(modelPath: path)
        try interpreter.allocateTensors()
    }

    /// Takes the bytes of each input: manifest.json has shapes and types.
    func run(_ given: [String: Data]) throws -> [String: Data] {
        for (name, data) in given {
            try interpreter.copy(data, toInputAt: inputs[name]!)
        }
        try interpreter.invoke()
        return try outputs.mapValues { try interpreter.output(at: $$0).data }
    }
}
""",
}


def loaders(target: str, manifest: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Return the source of each loader by its file's name, and notes on those that there are not.

    A runtime's Kotlin and Swift have not all types of tensors.
    """
    package = {"ort": "onnxruntime", "tflite": "ai-edge-litert"}[target]
    version = manifest["versions"][package]
    values = {
        "model": manifest["model"], "version": manifest["version"],
        "package": f"{package}=={version}", "package_version": version,
        "file": manifest["model_files"][0],
    }  # fmt: skip
    python = PYTHON_PARTS[target]
    found = {"model.py": Template(PYTHON_LOADER).substitute(values, **python)}
    notes = []
    for name, templates, types, quoted in (
        ("Model.kt", KOTLIN_LOADERS, KOTLIN_TYPES, _kotlin),
        ("Model.swift", SWIFT_LOADERS, SWIFT_TYPES, _swift),
    ):  # fmt: skip
        sides = (manifest["inputs"], manifest["outputs"])
        odd = [each["datatype"] for side in sides for each in side if each["datatype"] not in types]
        if target == "ort" and odd:
            notes.append(f"there is no {name}: its runtime has no tensors of {odd[0]}")
        else:
            found[name] = Template(templates[target]).substitute(values, **quoted(*sides))
    return found, notes


Tensors = Sequence[Mapping[str, Any]]


def _kotlin(inputs: Tensors, outputs: Tensors) -> dict[str, str]:
    names = {
        each["name"]: json.dumps(each["name"]).replace("$", "\\$") for each in [*inputs, *outputs]
    }
    types = (
        f"{names[t['name']]} to OnnxJavaType.{KOTLIN_TYPES.get(t['datatype'])}" for t in inputs
    )
    sizes = (f"{names[each['name']]} to {_bytes(each)}" for each in outputs)
    return {
        "types": ", ".join(types),
        "outputs": ", ".join(names[each["name"]] for each in outputs),
        "output_bytes": ", ".join(sizes),
    }


def _swift(inputs: Tensors, outputs: Tensors) -> dict[str, str]:
    types = (f"{json.dumps(t['name'])}: .{SWIFT_TYPES.get(t['datatype'])}" for t in inputs)
    places = [
        ", ".join(f"{json.dumps(each['name'])}: {each.get('index', 0)}" for each in side)
        for side in (inputs, outputs)
    ]
    return {
        "types": ", ".join(types),
        "outputs": ", ".join(json.dumps(each["name"]) for each in outputs),
        "input_places": places[0],
        "output_places": places[1],
    }


def _bytes(tensor: Mapping[str, Any]) -> int:
    count = int(np.prod([abs(size) for size in tensor["shape"]]))
    return count * int(np.dtype(tensor["numpy_type"]).itemsize)
