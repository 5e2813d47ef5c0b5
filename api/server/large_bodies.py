"""Reads a large body from gunicorn's socket into one buffer, from which its tensors are sent on.

gunicorn's own `read` copies a body four times between its buffers. What it knows of the connection
is brought up to date here, so that the next request is found where it begins.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gunicorn.http.body import Body, LengthReader
from gunicorn.http.unreader import SocketUnreader

from shared.messages import LARGE_BYTES


def read_into_one(stream: Any, length: int) -> memoryview | None:
    """Return a body of `length` bytes, shorter when the client left.

    None, and nothing is read, when the body is small or another server than gunicorn has it.
    Raises TimeoutError when nothing more comes.
    """
    reader: Any = getattr(stream, "reader", None)
    if length < LARGE_BYTES or type(stream) is not Body or type(reader) is not LengthReader:
        return None
    unreader = reader.unreader
    if type(unreader) is not SocketUnreader or reader.length != length or stream.buf.tell():
        return None
    # Not yet filled memory costs nothing: a client may declare much and send little.
    body = np.empty(length, np.uint8).data
    ahead = unreader.take_buffered()
    filled = min(len(ahead), length)
    body[:filled] = ahead[:filled]
    if len(ahead) > length:  # the next request is there already
        unreader.unread(ahead[length:])
    while filled < length:
        try:
            count = unreader.sock.recv_into(body[filled:])
        except TimeoutError:
            stream.failed = True
            raise
        except OSError:  # reset by the client, which is no more than hanging up
            count = 0
        if not count:
            stream.failed = True
            break
        filled += count
    reader.length -= filled
    return body[:filled]
