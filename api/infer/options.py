"""A request's options: its time-out, its priority, its client, its parameters for the model."""

from __future__ import annotations

import math
import socket
from collections.abc import Mapping
from typing import Any, NamedTuple

from api.tracing import TRACE, RequestTrace
from shared.errors import BadRequest, shown
from shared.logs import REQUEST_ID_VARIABLE
from shared.messages import NO_PARAMETERS, Parameters
from shared.model_spec import ModelSpec

TIMEOUT_HEADER = "HTTP_X_REQUEST_TIMEOUT"
OUR_PARAMETERS = {"timeout", "priority", "binary_data_output"}


class RequestOptions(NamedTuple):
    """`timeout_seconds` None means the default, `priority` 0 the model's default level.

    `client` is the connection that is watched while the request waits, if there is one.
    `parameters` are those that Ferry itself has no use for: the model gets them.
    `queue_timeout_seconds` is v2's `timeout`, 0 without: of a model with queue policies it is for
    these to judge, of an ensemble for its steps' models, of any other it is the request's deadline.
    In log lines it is `known_as` this. `trace` has its spans, where it is traced.
    """

    timeout_seconds: float | None = None
    priority: int = 0
    client: socket.socket | None = None
    parameters: Parameters = NO_PARAMETERS
    queue_timeout_seconds: float = 0.0
    known_as: str = ""
    trace: RequestTrace | None = None

    def deadline_seconds(self, spec: ModelSpec, default_seconds: float) -> float:
        """Return the time from its push to its answer; to its batch, where nobody waits for it."""
        wish = self.queue_timeout_seconds - self.queue_wish_seconds(spec)
        return wish or self.timeout_seconds or default_seconds

    def check_timeout(self, longest_seconds: float) -> None:
        """Raise BadRequest for a deadline, or time on the queue, that no client may ask for."""
        longest = max(self.timeout_seconds or 0.0, self.queue_timeout_seconds)
        if longest > longest_seconds:
            raise BadRequest(f"a request may wait {longest_seconds:g} s at most, not {longest}")

    def queue_wish_seconds(self, spec: ModelSpec) -> float:
        """Return the part of `timeout` that queue policies judge, its own or its steps' models'."""
        return self.queue_timeout_seconds if spec.queue_policies or spec.steps else 0.0

    def bounded(self, spec: ModelSpec, seconds: float) -> RequestOptions:
        """Return the options of a request that has no more than these seconds."""
        wish = self.queue_wish_seconds(spec)
        return self._replace(timeout_seconds=seconds, queue_timeout_seconds=wish)

    def level(self, spec: ModelSpec) -> int:
        """Return the queue to wait on, 1 for the most urgent; raises BadRequest.

        Source: Triton's schedule policy extension. A model without levels has one for all.
        """
        if not spec.priority_levels:
            return 1
        if self.priority > spec.priority_levels:
            raise BadRequest(
                f"\"priority\" {self.priority}: '{spec.name}' has the levels 1 to "
                f"{spec.priority_levels}"
            )
        return spec.queue_of(self.priority or spec.default_priority_level)


DEFAULT_OPTIONS = RequestOptions()


def options_of(environ: Mapping[str, Any], parameters: Mapping[str, Any]) -> RequestOptions:
    """Read a request's header `X-Request-Timeout` (seconds) and its v2 parameters.

    `timeout` is in microseconds, `priority` a level, as in Triton's schedule policy extension.
    Raises BadRequest.
    """
    client, trace = environ.get("gunicorn.socket"), environ.get(TRACE)
    header, known_as = environ.get(TIMEOUT_HEADER), environ.get(REQUEST_ID_VARIABLE, "")
    if not parameters and header is None:
        return RequestOptions(client=client, known_as=known_as, trace=trace)
    seconds = None if header is None else _seconds(header)
    queue_seconds = _whole(parameters, "timeout") / 1e6 if "timeout" in parameters else 0.0
    priority = _whole(parameters, "priority") if "priority" in parameters else 0
    others = {name: value for name, value in parameters.items() if name not in OUR_PARAMETERS}
    return RequestOptions(seconds, priority, client, others, queue_seconds, known_as, trace)


def _seconds(header: str) -> float:
    try:
        seconds = float(header)
    except ValueError:
        seconds = math.nan
    if not seconds > 0 or math.isinf(seconds):
        raise BadRequest(f"X-Request-Timeout {shown(header)} must be a number of seconds above 0")
    return seconds


def _whole(parameters: Mapping[str, Any], name: str) -> int:
    value = parameters[name]
    if type(value) is not int or value < 0:
        raise BadRequest(f'parameter "{name}" must be a whole number from 0, not {shown(value)}')
    return value
