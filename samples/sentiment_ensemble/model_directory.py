"""Write the model directories of the ensemble and of its two steps' models, beside it."""

import shutil
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from samples.sentiment.architecture import Encoder, SentimentModel, mean_pool
from samples.sentiment.model_directory import export
from samples.sentiment.sentences import FOLDER as SENTIMENT_FOLDER
from samples.sentiment.weights import load_tokenizer, load_trained_model

FOLDER = Path(__file__).parent
STEPS = ("sentiment_encoder", "sentiment_head")


class SentenceEncoder(nn.Module):
    """The trained encoder with its pooling: one vector for each sentence."""

    def __init__(self, encoder: Encoder) -> None:
        """Share the encoder's weights."""
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """INT64 [batch, sequence] twice to FP32 [batch, 384]."""
        return mean_pool(self.encoder(input_ids, attention_mask), attention_mask)


def make(directory: Path) -> None:
    """Write the ensemble's entry `directory`, with the encoder's and the head's beside it.

    Nothing is trained. Leaves torch's global random state as it was.
    """
    encoder, head = (_start(directory.with_name(name)) for name in STEPS)
    _start(directory)
    shutil.copyfile(SENTIMENT_FOLDER / "labels.txt", directory / "labels.txt")
    load_tokenizer().save(str(directory / "tokenizer.json"))
    model = load_trained_model()
    export(SentenceEncoder(model.encoder).eval(), encoder / "1" / "model.onnx", "sentence")
    _export_head(model, head / "1" / "model.onnx")


def _start(directory: Path) -> Path:
    """Make a model directory with its version and its configuration; return it."""
    (directory / "1").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(FOLDER / f"{directory.name}.pbtxt", directory / "config.pbtxt")
    return directory


def _export_head(model: SentimentModel, path: Path) -> None:
    with warnings.catch_warnings():
        # The exporter's own: it calls a deprecated torch function.
        warnings.simplefilter("ignore", FutureWarning)
        torch.onnx.export(
            model.head,
            (torch.zeros(2, model.head.in_features),),
            path,
            input_names=["sentence"],
            output_names=["logits"],
            dynamic_shapes={"input": {0: torch.export.Dim("batch")}},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
