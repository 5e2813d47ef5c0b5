"""A decoder's process (`python -m worker.instance.decoding.child`): a file in, pixels out.

It is to an instance as `api.readers.child` is to an API process: it may die of what it reads.
"""

from __future__ import annotations

from functools import lru_cache

import msgpack

from shared.errors import FerryError, PayloadTooLarge
from shared.inputs.pictures import MANY_PIXELS, decode_alone, limit_pictures
from shared.inputs.reader_process import TOO_MUCH_MEMORY, serve
from shared.model_spec import ImageInput

DECODE_SECONDS = 5.0
"""Processor time for one picture. None that the API sends so takes a tenth of it."""
PIXELS, ERROR = b"\0", b"\1"
"""The first byte of a reply: what is behind it."""


def answer(head: bytes, body: memoryview) -> bytes:
    """Return a picture's pixels, or the code and message of an error."""
    image, where = msgpack.unpackb(head)
    try:
        return PIXELS + decode_alone(body, _image(image), where).tobytes()
    except FerryError as error:
        return _error(error.code, error.message)
    except MemoryError:
        return _error(PayloadTooLarge.code, TOO_MUCH_MEMORY)


def _error(code: str, message: str) -> bytes:
    packed: bytes = msgpack.packb([code, message])
    return ERROR + packed


@lru_cache(maxsize=1)
def _image(description: str) -> ImageInput:
    return ImageInput.model_validate_json(description)


def main() -> None:
    """Decode one picture after the other."""
    limit_pictures(MANY_PIXELS)
    serve(answer, DECODE_SECONDS)


if __name__ == "__main__":
    main()
