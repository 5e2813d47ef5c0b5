"""Where much is to be done at a stretch, all others have a turn in between.

subtle: gevent's own `sleep(0)` is not enough for that: its hub looks at sockets only behind fifty
callbacks, and who gives up a turn of some milliseconds is the next callback again. A request needs
several looks, so beside one large body it took half a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_rest: list[Callable[[], None]] = []


def let_others() -> None:
    """Have whoever is ready go on first: other threads, or all greenlets with a ready socket."""
    if _rest:
        _rest[0]()
    else:
        time.sleep(0)


def rest_by(rest: Callable[[], None]) -> None:
    """Have this process give its turns by `rest`."""
    _rest[:] = [rest]
