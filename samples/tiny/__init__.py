"""The benchmark model: 16 floats through two small layers, so that the server is what is timed."""

from samples.tiny.model_directory import make

__all__ = ["make"]
