"""Embeddings of sentences: token ids in, one vector of length 1 out.

The encoder that `sentiment` is trained from, as it was published: mean pooling over the mask, then
L2 normalisation, as sentence-transformers has it.
"""

from samples.sentences.model_directory import make

__all__ = ["make"]
