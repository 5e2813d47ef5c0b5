"""The part of an error that a client may see, whatever transport it came by."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from secrets import token_hex

from api.infer.answer import Headers, HttpAnswer, json_answer
from shared.errors import BadRequest, FerryError, UnknownModel

log = logging.getLogger(__name__)

SERVER_ERRORS = 500
OPENAI_CODES: Mapping[type[FerryError], str] = {UnknownModel: "model_not_found"}
"""The codes that OpenAI's clients know by another word."""


def public_error(error: Exception, asked: str) -> FerryError:
    """Return a FerryError as it is; of anything else a client learns an id and no more.

    The detail goes to the log only, with `asked`: the request's method and path.
    """
    if isinstance(error, FerryError):
        return error
    error_id = token_hex(6)
    log.error("%s: error %s", asked, error_id, exc_info=error)
    return FerryError(f"internal error {error_id}")


def openai_error_answer(error: Exception, asked: str) -> HttpAnswer:
    """Answer as `error_answer`, in the form that OpenAI's clients read."""
    ours = public_error(error, asked)
    body = {
        "message": ours.message,
        "type": "server_error" if ours.status >= SERVER_ERRORS else "invalid_request_error",
        "param": ours.param if isinstance(ours, BadRequest) else None,
        "code": OPENAI_CODES.get(type(ours), ours.code),
    }
    return json_answer({"error": body}, ours.status, _headers(ours))


def error_answer(error: Exception, asked: str) -> HttpAnswer:
    """Return a FerryError's own answer; anything else becomes a bare 500 with an id.

    `error` is the Open Inference Protocol's key; `code` is ours, for programs.
    """
    ours = public_error(error, asked)
    return json_answer({"error": ours.message, "code": ours.code}, ours.status, _headers(ours))


def _headers(error: FerryError) -> Headers:
    seconds = error.retry_after_seconds
    return () if seconds is None else (("Retry-After", str(seconds)),)
