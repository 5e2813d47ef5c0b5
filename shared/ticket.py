"""The ticket that stands on the queue for a request: its layout, for Python and for the scripts.

A ticket is 44 bytes that the scripts read without decoding anything else, then the id:

    B version   B attempts   B level   B on time-out   I4 rows   d enqueued   d deadline
    d queue deadline   8 bytes signature   I4 body bytes   id

`on time-out` says what happens when it still waits at its queue deadline, the queue policy's: 0
nothing, REJECT or, once, DELAY. Once claimed it has none any more. Level 1 is served first.

An id is 32 hex digits. The first 8 are the <process> that waits for it, drawn by an API process for
each model version that it asks, or ASYNCHRONOUS or IDEMPOTENT when none does.

In every version of this layout version, attempts and level are the first three bytes, body bytes
and id the last 36, and there are 44 at least. So whoever finds a ticket of another version can
count it, cancel it and put it back; only an instance of its own version claims it.

`scripts/_ticket.lua` is the scripts' side; `filled_in` gives it these numbers.
"""

from __future__ import annotations

import struct

TICKET = struct.Struct("<BBBBIddd8sI")
ID_BYTES = 32
TICKET_VERSION = 4
REJECT, DELAY = 1, 2
ASYNCHRONOUS = "00000000"
"""Begins the id of a request for whose answer no API process waits; it is asked for later."""
IDEMPOTENT = "00000001"
"""As ASYNCHRONOUS, with an Idempotency-Key, which may come again: the answer lives for an hour."""


def filled_in(script: str) -> str:
    """Return a script with these constants where it names them between two @."""
    for name in ("TICKET_VERSION", "REJECT", "DELAY", "ASYNCHRONOUS", "IDEMPOTENT"):
        script = script.replace(f"@{name}@", str(globals()[name]))
    return script
