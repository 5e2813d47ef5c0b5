"""The ticket that stands on the queue for a request: its layout, for Python and for the scripts.

A ticket is 52 bytes that the scripts read without decoding anything else, then the id:

    B version   B attempts   B level   B on time-out   I4 rows   d enqueued   d deadline
    d queue deadline   8 bytes signature   d turn   I4 body bytes   id

`on time-out` says what happens when it still waits at its queue deadline, the queue policy's: 0
nothing, REJECT or, once, DELAY. Once claimed it has none any more. Level 1 is served first. `turn`
is that of its API key's on this level, see `_turns.lua`; 0 without a key.

An id is 32 hex digits. The first 8 are the <process> that waits for it, drawn by an API process for
each model version that it asks, or ASYNCHRONOUS or IDEMPOTENT when none does.

In every version of this layout version, attempts and level are the first three bytes, body bytes
and id the last 36, and there are 44 at least. So whoever finds a ticket of another version can
count it, cancel it and put it back; only an instance of its own version claims it.

The scripts name these numbers between two @, as `@LEVEL@`. fast: they are written into their
texts; functions of an include, made at each run, cost a lone push a tenth more (2026-11-29).
"""

from __future__ import annotations

import re
import struct

TICKET = struct.Struct("<BBBBIddd8sdI")
ID_BYTES = 32
TICKET_VERSION = 5
REJECT, DELAY = 1, 2
ASYNCHRONOUS = "00000000"
"""The beginning of an asynchronous request's id: no process waits for its answer."""
IDEMPOTENT = "00000001"
"""As ASYNCHRONOUS, with an Idempotency-Key, which may come again: the answer lives for an hour."""


_IN_SCRIPTS = {
    "TICKET": "<BBBBI4dddc8dI4",  # TICKET, as Lua's struct has it
    "TICKET_VERSION": TICKET_VERSION,
    "LEVEL": 3,
    "ON_TIMEOUT": 4,
    "ENQUEUED": 9,
    "DEADLINE": 17,
    "TURN": 41,
    "SIZE": -ID_BYTES - 4,  # of the body
    "ID": -ID_BYTES,
    "REJECT": REJECT,
    "DELAY": DELAY,
    "ASYNCHRONOUS": ASYNCHRONOUS,
    "IDEMPOTENT": IDEMPOTENT,
}
"""Where each begins, counted from 1, or from the end, and what stands there."""


def filled_in(script: str) -> str:
    """Return a script with its numbers; raises KeyError for a name that has none."""
    return re.sub("@([A-Z_]+)@", lambda found: str(_IN_SCRIPTS[found[1]]), script)
