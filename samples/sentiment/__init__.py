"""Sentiment of a sentence: token ids in, negative and positive logits out. Made by `train.py`."""

from samples.sentiment.train import make

__all__ = ["make"]
