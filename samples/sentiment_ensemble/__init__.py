"""The sentiment sample in two models, and the ensemble that makes one of them again.

`sentiment_encoder` turns token ids into one vector per sentence, `sentiment_head` classifies it;
`sentiment_ensemble` answers as `sentiment` does. Another head could share the encoder.
"""

from samples.sentiment_ensemble.model_directory import make

__all__ = ["make"]
