"""From an encoded picture to a digit: a Python model opens it, `digits` reads it.

The ensemble `digit_reader` takes the file as it is (PNG, JPEG, ...), of any size, as BYTES.
"""

from samples.digit_reader.model_directory import make

__all__ = ["make"]
