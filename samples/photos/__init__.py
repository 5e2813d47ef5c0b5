"""The sample `photos`: EfficientNet-Lite0 with trained weights names what is on a photograph."""

from samples.photos.model_directory import make
from samples.photos.weights import load

__all__ = ["load", "make"]
