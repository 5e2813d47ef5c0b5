"""The part of an error that a client may see, whatever transport it came by."""

from __future__ import annotations

import logging
from secrets import token_hex

from api.infer.answer import HttpAnswer, json_answer
from shared.errors import FerryError

log = logging.getLogger(__name__)


def public_error(error: Exception, asked: str) -> FerryError:
    """Return a FerryError as it is; of anything else a client learns an id and no more.

    The detail goes to the log only, with `asked`: the request's method and path.
    """
    if isinstance(error, FerryError):
        return error
    error_id = token_hex(6)
    log.error("%s: error %s", asked, error_id, exc_info=error)
    return FerryError(f"internal error {error_id}")


def error_answer(error: Exception, asked: str) -> HttpAnswer:
    """Return a FerryError's own answer; anything else becomes a bare 500 with an id.

    `error` is the Open Inference Protocol's key; `code` is ours, for programs.
    """
    ours = public_error(error, asked)
    retry_after = ours.retry_after_seconds
    headers = () if retry_after is None else (("Retry-After", str(retry_after)),)
    return json_answer({"error": ours.message, "code": ours.code}, ours.status, headers)
