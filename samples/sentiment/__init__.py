"""Sentiment of a sentence: token ids in, negative and positive logits out.

`make` applies the committed `trained.safetensors` to the published encoder; `train.py` says how
that file was made and how well it reads.
"""

from samples.sentiment.model_directory import make

__all__ = ["make"]
