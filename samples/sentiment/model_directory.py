"""Write the model repository entry of `sentiment`: published encoder, our difference, ONNX."""

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from samples.sentiment.sentences import FOLDER
from samples.sentiment.weights import load_tokenizer, load_trained_model


def make(directory: Path) -> None:
    """Write the model repository entry `directory`: configuration, labels, tokenizer, model 1.

    Nothing is trained. Leaves torch's global random state as it was.
    """
    version_directory = directory / "1"
    version_directory.mkdir(parents=True, exist_ok=True)
    for name in ("config.pbtxt", "labels.txt"):
        shutil.copyfile(FOLDER / name, directory / name)
    load_tokenizer().save(str(directory / "tokenizer.json"))
    export(load_trained_model(), version_directory / "model.onnx")


def export(model: nn.Module, path: Path, output: str = "logits") -> None:
    """Write `model`, token ids and mask to `output`, as one ONNX file with its weights inside.

    Batch and sequence axes are free.
    """
    input_ids, attention_mask = pad([[101, 2204, 102], [101, 2919, 2833, 102]])
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=512)}
    with warnings.catch_warnings():
        # The exporter's own: it calls a deprecated torch function, and both inputs share the axes.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", "# The axis name", UserWarning)
        torch.onnx.export(
            model,
            (input_ids, attention_mask),
            path,
            input_names=["input_ids", "attention_mask"],
            output_names=[output],
            dynamic_shapes={"input_ids": axes, "attention_mask": axes},
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def pad(rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Token ids of different lengths to INT64 [batch, longest]: ids and attention mask."""
    longest = max(len(row) for row in rows)
    input_ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    attention_mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return input_ids, attention_mask
