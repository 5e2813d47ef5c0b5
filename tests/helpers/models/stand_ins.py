"""Tiny models that tests make and serve: a directory each, in Triton's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from scripted_models import write_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "food", "the", "was"]


def torchscript(repository: Path, name: str, module: torch.nn.Module, config: str) -> None:
    """Write `module`, scripted, as version 1 of a model."""
    write_model(repository, name, 'platform: "pytorch_libtorch"\n' + config, module)


def onnx_graph(
    repository: Path,
    name: str,
    config: str,
    nodes: list[Any],
    inputs: list[Any],
    outputs: list[Any],
) -> None:
    """Write an ONNX graph as version 1 of a model."""
    directory = repository / name
    (directory / "1").mkdir(parents=True)
    (directory / "config.pbtxt").write_text('platform: "onnxruntime_onnx"\n' + config)
    graph = helper.make_graph(nodes, name, inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, directory / "1" / "model.onnx")


def text_model(
    repository: Path,
    name: str,
    *,
    max_length: int,
    truncate: bool,
    length: int = -1,
    datatype: str = "INT64",
) -> None:
    """Write a model that counts: logits are how often "bad" and how often "good" was said.

    Its inputs have `length` tokens of `datatype`.
    """
    ids = ("input_ids", "attention_mask")
    ragged = "allow_ragged_batch: true" if length == -1 else ""
    config = f"""
max_batch_size: 8
input [ {{ name: "input_ids" data_type: TYPE_{datatype} dims: [{length}] {ragged} }},
        {{ name: "attention_mask" data_type: TYPE_{datatype} dims: [{length}] {ragged} }} ]
output [ {{ name: "logits" data_type: TYPE_FP32 dims: [2] label_filename: "labels.txt" }} ]
parameters {{ key: "input_kind" value {{ string_value: "text" }} }}
parameters {{ key: "max_length" value {{ string_value: "{max_length}" }} }}
parameters {{ key: "truncate" value {{ string_value: "{json.dumps(truncate)}" }} }}
parameters {{ key: "label_key" value {{ string_value: "sentiment" }} }}
"""
    constants = {"bad": WORDS.index("bad"), "good": WORDS.index("good"), "axis": 1}
    nodes = [_constant(key, [value]) for key, value in constants.items()]
    nodes += [
        helper.make_node("Cast", [each], [f"{each}_64"], to=TensorProto.INT64) for each in ids
    ]
    for word in ("bad", "good"):
        nodes += [
            helper.make_node("Equal", ["input_ids_64", word], [f"is_{word}"]),
            helper.make_node("Cast", [f"is_{word}"], [f"{word}_1"], to=TensorProto.INT64),
            helper.make_node("Mul", [f"{word}_1", "attention_mask_64"], [f"{word}_seen"]),
            helper.make_node("ReduceSum", [f"{word}_seen", "axis"], [f"{word}_count"], keepdims=1),
        ]
    nodes += [
        helper.make_node("Concat", ["bad_count", "good_count"], ["counts"], axis=1),
        helper.make_node("Cast", ["counts"], ["logits"], to=TensorProto.FLOAT),
    ]
    kind = TensorProto.DataType.Value(datatype.replace("FP32", "FLOAT"))
    shape = ["n", "t" if length == -1 else length]
    inputs = [helper.make_tensor_value_info(name, kind, shape) for name in ids]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])]
    onnx_graph(repository, name, config, nodes, inputs, outputs)
    (repository / name / "labels.txt").write_text("negative\npositive\n")
    tokenizer().save(str(repository / name / "tokenizer.json"))


def tokenizer() -> Tokenizer:
    """Return a tokenizer of whole words, which adds [CLS] and [SEP]."""
    words = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, "[UNK]"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return words


def _constant(name: str, values: list[int]) -> Any:
    tensor = helper.make_tensor(name, TensorProto.INT64, [len(values)], values)
    return helper.make_node("Constant", [], [name], value=tensor)
