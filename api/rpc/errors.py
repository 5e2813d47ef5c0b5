"""Every error as a gRPC status, in the words that HTTP has for it.

Apart from the service, as `api.routes.errors` is from the routes: one table to look a status up.
"""

from __future__ import annotations

from typing import NoReturn

import grpc

from shared.errors import FerryError, RequestExpired

CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
}
"""By HTTP's status; INTERNAL is all the rest."""
MAX_DETAIL_BYTES = 2000
"""Details travel in a header, each byte as up to three, and clients take 8 KiB of headers."""


def status_code(error: FerryError) -> grpc.StatusCode:
    """Return the code that an error is answered with."""
    if isinstance(error, RequestExpired):
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return CODES.get(error.status, grpc.StatusCode.INTERNAL)


def refuse(context: grpc.ServicerContext, error: FerryError) -> NoReturn:
    """End a call with an error; `retry-after`, in seconds, stands in the trailing metadata."""
    if error.retry_after_seconds is not None:
        context.set_trailing_metadata((("retry-after", str(error.retry_after_seconds)),))
    details = error.message.encode()[:MAX_DETAIL_BYTES].decode(errors="ignore")
    context.abort(status_code(error), details)
    raise AssertionError("abort raises")
