"""Every error Ferry answers with, each belonging to a stop of a request's walk.

    1 the door               Unauthorized, Forbidden, RateLimited, ForeignPage, UnknownHost
    1-2 body, checks         BadRequest, PayloadTooLarge, RequestTimeout, UnsupportedEncoding,
                             UnknownRoute, MethodNotAllowed, UnknownModel, ModelNotReady,
                             Unsupported, LoadFailed (of who asks to load a model),
                             UnknownJob, JobEnded, JobNotEnded (of who asks for jobs)
    3-4 push                 QueueFull, RedisUnavailable, VersionRetired
    5 claim                  RequestExpired
    6-8 the worker's batch   ModelFailed (it raised), BadModelOutput (wrong rows or names),
                             BodyLost (no client's: the API process asks again)
    recovery                 ModelCrashed (the process died under it, three times)
    and back: wait           RequestExpired, RedisUnavailable, ClientLeft

An error raised on the worker's side crosses Redis as (code, message) and is raised again by `wait`.
"""

from __future__ import annotations

import re
import reprlib
from typing import ClassVar, Self

LONGEST_ERROR_TEXT, KEPT_ERROR_TEXT = 4000, 3800
"""Of an exception's text, in characters: a model may raise with a whole tensor in it.

A longer one is cut to the second, so that what is put around it does not have it cut again."""

SCRIPT_TRACE = "Traceback of TorchScript"
"""What TorchScript's errors have in front of their last line, which alone says what was wrong."""
ONNX_RUNTIME_MARK = "[ONNXRuntimeError]"
ONNX_RUNTIME = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : (?:Load model from .*? failed:)?"
    r"|\S+\.(?:cc|h):\d+ (?:(?:\S+ )?[\w:~]+\([^()]*\)|\w+) "
)
"""What ONNX Runtime's errors have in front, and where in its source it raised them."""


def text_of(error: BaseException) -> str:
    """Return an exception's text, whatever it is: without surrogates, and cut when it is long.

    So is what frameworks say of themselves: TorchScript's traceback, ONNX Runtime's source lines.
    """
    try:
        text = str(error)
    except BaseException as raised:  # a border: a model's own `__str__`, the text says that
        text = f"its text raises {type(raised).__name__}"
    if SCRIPT_TRACE in text:
        _, found, said = text.rpartition(f"\n{type(error).__name__}: ")
        text = said.strip() if found else text.strip().splitlines()[-1]
    if ONNX_RUNTIME_MARK in text:
        text = ONNX_RUNTIME.sub("", text)
    if len(text) > LONGEST_ERROR_TEXT:
        text = f"{text[:KEPT_ERROR_TEXT]}... ({len(text)} characters)"
    return text.encode(errors="backslashreplace").decode()


def described(error: BaseException) -> str:
    """Return an exception's class and text, and those of the first one in a group."""
    said = ": ".join(filter(None, (type(error).__name__, text_of(error))))
    if isinstance(error, BaseExceptionGroup):
        return f"{said}: {described(error.exceptions[0])}"
    return said


def shown(value: object) -> str:
    """Return what a client sent as an error quotes it: no more of it than LONGEST_QUOTE."""
    if type(value) is str and len(value) <= LONGEST_QUOTE:
        text = repr(value)  # fast: names of inputs are quoted before anything is wrong with them
    else:
        text = _QUOTES.repr(value)
    return text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]}..."


def _quotes() -> reprlib.Repr:
    """Return what writes a few of a collection's items: a shape may have millions."""
    quotes = reprlib.Repr()
    quotes.maxlist = quotes.maxtuple = quotes.maxdict = quotes.maxset = 30
    quotes.maxstring = quotes.maxother = quotes.maxlong = LONGEST_QUOTE
    return quotes


LONGEST_QUOTE = 200
_QUOTES = _quotes()


class FerryError(Exception):
    """Base of all errors that have an answer; `status` is HTTP's, `code` is for programs."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    retry_after_seconds: int | None = None
    is_of_queue = False
    """Whether the request reached a queue, which has counted what became of it."""

    def of_queue(self) -> Self:
        """Return it as the error of a request that reached a queue."""
        self.is_of_queue = True
        return self

    @property
    def message(self) -> str:
        """The mistake, the expectation and the place, for the client."""
        return text_of(self)


class BadRequest(FerryError):
    """The body, a tensor, a picture or a text is not what the model takes."""

    code = "bad_request"
    status = 400
    param: str | None = None
    """The body's field that is wrong, for protocols whose errors name it."""

    @classmethod
    def about(cls, param: str, message: str) -> BadRequest:
        """Return the error about one field of the body."""
        error = cls(message)
        error.param = param
        return error


class Unauthorized(FerryError):
    """The request came without an API key, or with one that is not good, where keys are wanted."""

    code = "unauthorized"
    status = 401


class Forbidden(FerryError):
    """The request's API key does not allow this, or not to this model."""

    code = "forbidden"
    status = 403


class UnknownHost(FerryError):
    """The request's `Host` is none of this server's names: FERRY_HOSTS has them."""

    code = "unknown_host"
    status = 403


class ForeignPage(FerryError):
    """A page of another origin had a browser send a request that changes something."""

    code = "foreign_page"
    status = 403


class RateLimited(FerryError):
    """The API key has used up its rate, or has as many requests under way as it may."""

    code = "rate_limited"
    status = 429
    retry_after_seconds = 1


class PayloadTooLarge(FerryError):
    """The body is above FERRY_MAX_BODY_BYTES, its JSON above FERRY_MAX_JSON_BYTES."""

    code = "payload_too_large"
    status = 413


class RequestTimeout(FerryError):
    """Nothing more of the body came for FERRY_REQUEST_TIMEOUT_SECONDS, or too slowly."""

    code = "request_timeout"
    status = 408


class UnsupportedEncoding(FerryError):
    """The body came with a Content-Encoding other than gzip or deflate, or with several."""

    code = "unsupported_encoding"
    status = 415


class UnknownRoute(FerryError):
    """No route matches the path."""

    code = "unknown_route"
    status = 404


class MethodNotAllowed(FerryError):
    """The route exists, the method does not."""

    code = "method_not_allowed"
    status = 405


class UnknownModel(FerryError):
    """No model of this name, or no such version of it, is served."""

    code = "unknown_model"
    status = 404


class ModelNotReady(FerryError):
    """The model is known but nothing serves it now: still loading, or it failed to load."""

    code = "model_not_ready"
    status = 503
    retry_after_seconds = 1


class LoadFailed(FerryError):
    """A model or version cannot be loaded or used; what served before serves on."""

    code = "load_failed"
    status = 400


class VersionRetired(ModelNotReady):
    """This version of the model left while the request was on its way to it."""

    code = "version_retired"

    @classmethod
    def default(cls) -> VersionRetired:
        """Return the error with its usual sentence."""
        return cls("this version of the model was replaced just now: ask again")


class Unsupported(FerryError):
    """A part of the protocol that this server does not offer."""

    code = "unsupported"
    status = 501


class QueueFull(FerryError):
    """As many requests, or bytes, wait already as may wait: for the model, or in this process."""

    code = "queue_full"
    status = 503
    retry_after_seconds = 1
    waiting = 0
    """The number of requests that were waiting."""

    @classmethod
    def with_waiting(cls, count: int) -> QueueFull:
        """Return the error of a queue that `count` requests wait on."""
        error = cls("Exceeds maximum queue size")
        error.waiting = count
        return error


class RedisUnavailable(FerryError):
    """Redis does not answer, so nothing can be accepted."""

    code = "redis_unavailable"
    status = 503
    retry_after_seconds = 1


class RequestExpired(FerryError):
    """The deadline passed before an answer came."""

    code = "request_expired"
    status = 503


class ClientLeft(FerryError):
    """The client hung up while its request waited, which was taken back; nobody reads this."""

    code = "client_left"
    status = 499


class UnknownRequest(FerryError):
    """No asynchronous request has this id."""

    code = "unknown_request"
    status = 404


class RequestGone(FerryError):
    """An asynchronous request expired, was cancelled, or its answer was kept long enough."""

    code = "request_gone"
    status = 410


class RequestStarted(FerryError):
    """A request that runs already cannot be cancelled."""

    code = "request_started"
    status = 409


class UnknownJob(FerryError):
    """No job has this id."""

    code = "unknown_job"
    status = 404


class JobEnded(FerryError):
    """A job that has ended cannot be cancelled, one that has finished not be begun again."""

    code = "job_ended"
    status = 409


class JobNotEnded(FerryError):
    """A job waits or runs, or ended without a result, and has nothing to be fetched yet."""

    code = "job_not_ended"
    status = 409


class IdempotencyConflict(FerryError):
    """An Idempotency-Key came again with another request."""

    code = "idempotency_conflict"
    status = 422


class ModelFailed(FerryError):
    """The model raised on this request alone."""

    code = "model_failed"
    status = 500


class BadModelOutput(FerryError):
    """The model returned other outputs, or another number of rows, than it declares."""

    code = "bad_model_output"
    status = 500


class ModelCrashed(FerryError):
    """The worker process died while it ran this request, `MAX_ATTEMPTS` times."""

    code = "model_crashed"
    status = 500


class BadMessage(FerryError):
    """Bytes from Redis are not a message of ours (raised by every decode)."""

    code = "bad_message"
    status = 500


class BodyLost(BadMessage):
    """A request's large tensors are not where its message says; its API process asks again."""

    code = "body_lost"
    status = 503

    @classmethod
    def default(cls) -> BodyLost:
        """Return the error with its one text, by which it is known."""
        return cls("the request's tensors are not in shared memory any more")


class BadModel(FerryError):
    """A model directory cannot be served; the message names file, field and value."""

    code = "bad_model"
    status = 500


class BadSetting(FerryError):
    """An environment variable has a value that cannot be; names both and stops the start."""

    code = "bad_setting"
    status = 500


def by_code(code: str, message: str) -> FerryError:
    """Return the error of `code`; an unknown code (a newer worker's) becomes a plain FerryError."""
    return _CLASSES.get(code, FerryError)(message)


def all_errors() -> list[type[FerryError]]:
    """Return every error class, each with a code of its own."""
    return list(_CLASSES.values())


def _subclasses(base: type[FerryError]) -> list[type[FerryError]]:
    return [base] + [found for child in base.__subclasses__() for found in _subclasses(child)]


_CLASSES = {error.code: error for error in _subclasses(FerryError)}
