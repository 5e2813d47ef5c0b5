"""The part of an error that a client may see, whatever transport it came by."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from secrets import token_hex

from api.access.guard import is_admin
from api.infer.answer import Headers, HttpAnswer, json_answer
from shared.access.api_key import ApiKey
from shared.errors import (
    BadMessage,
    BadModel,
    BadModelOutput,
    BadRequest,
    BadSetting,
    FerryError,
    LoadFailed,
    ModelCrashed,
    ModelFailed,
    ModelNotReady,
    RedisUnavailable,
    Unauthorized,
    UnknownModel,
)

log = logging.getLogger(__name__)

SERVER_ERRORS = 500
OPENAI_CODES: Mapping[type[FerryError], str] = {UnknownModel: "model_not_found"}
"""The codes that OpenAI's clients know by another word."""


TELL_INSIDE = (
    BadMessage, BadModel, BadModelOutput, BadSetting, LoadFailed, ModelCrashed, ModelFailed,
    ModelNotReady, RedisUnavailable,
)  # fmt: skip
"""Errors whose texts may name files, hosts or processes, or be a library's: admins see them."""


def public_error(error: Exception, asked: str, key: ApiKey | None = None) -> FerryError:
    """Return a FerryError as it is, or without its text; of anything else an id and no more.

    The detail goes to the log only, with `asked`: the request's method and path. So does a text
    that may tell what is inside, unless an admin asked.
    """
    is_ours = isinstance(error, FerryError) and type(error) is not FerryError
    if isinstance(error, FerryError) and (is_admin(key) or is_ours):
        if is_admin(key) or not isinstance(error, TELL_INSIDE):
            return error
        error_id = token_hex(6)
        log.info("%s: error %s, of key %s: %s", asked, error_id, key and key.id, error.message)
        hidden = type(error)(f"{error.code}: the log and admins are told why, as error {error_id}")
        hidden.retry_after_seconds = error.retry_after_seconds
        return hidden
    error_id = token_hex(6)
    log.error("%s: error %s", asked, error_id, exc_info=error)
    return FerryError(f"internal error {error_id}")


def openai_error_answer(error: Exception, asked: str, key: ApiKey | None = None) -> HttpAnswer:
    """Answer as `error_answer`, in the form that OpenAI's clients read."""
    ours = public_error(error, asked, key)
    body = {
        "message": ours.message,
        "type": "server_error" if ours.status >= SERVER_ERRORS else "invalid_request_error",
        "param": ours.param if isinstance(ours, BadRequest) else None,
        "code": OPENAI_CODES.get(type(ours), ours.code),
    }
    return json_answer({"error": body}, ours.status, _headers(ours))


def error_answer(error: Exception, asked: str, key: ApiKey | None = None) -> HttpAnswer:
    """Return a FerryError's own answer; anything else becomes a bare 500 with an id.

    `error` is the Open Inference Protocol's key; `code` is ours, for programs.
    """
    ours = public_error(error, asked, key)
    return json_answer({"error": ours.message, "code": ours.code}, ours.status, _headers(ours))


def _headers(error: FerryError) -> Headers:
    seconds = error.retry_after_seconds
    retry = () if seconds is None else (("Retry-After", str(seconds)),)
    # A program takes the first; a browser asks for the second with a form of its own.
    wanted = (("WWW-Authenticate", 'Bearer realm="ferry", Basic realm="an API key as password"'),)
    return (*retry, *wanted) if isinstance(error, Unauthorized) else retry
