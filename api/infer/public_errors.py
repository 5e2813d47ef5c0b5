"""What a client is told of a failure, whatever transport it came by."""

from __future__ import annotations

import logging
from secrets import token_hex

from shared.errors import FerryError

log = logging.getLogger(__name__)


def public_error(error: Exception, asked: str) -> FerryError:
    """Return a FerryError as it is; of anything else a client learns an id and no more.

    The detail goes to the log only, with `asked`: what the client wanted.
    """
    if isinstance(error, FerryError):
        return error
    error_id = token_hex(6)
    log.error("%s: error %s", asked, error_id, exc_info=error)
    return FerryError(f"internal error {error_id}")
