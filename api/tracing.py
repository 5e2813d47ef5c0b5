"""Traces of requests in an API process: whether one is made, and its spans that end here.

The instances add theirs: what travels with the request is the `traceparent` of its first span.
`shared/tracing/tracer.py` lists all spans.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from shared.logs import REQUEST_ID_VARIABLE
from shared.registry.trace_settings import TraceSampler

if TYPE_CHECKING:
    from shared.tracing.tracer import About, Tracer

TRACE = "ferry.trace"
"""The place of a request's trace in WSGI's environment."""
TRACEPARENT_VARIABLE, TRACESTATE_VARIABLE = "HTTP_TRACEPARENT", "HTTP_TRACESTATE"
"""W3C's headers, as WSGI names them."""


class RequestTrace:
    """One traced request in this process: its first span, and what it tells the instances."""

    __slots__ = ("_span", "_tracer", "traceparent")

    def __init__(self, tracer: Tracer, span: Any) -> None:
        """Go on with a span that just began."""
        self._tracer = tracer
        self._span = span
        self.traceparent = tracer.traceparent_of(span)

    @contextmanager
    def push(self) -> Iterator[None]:
        """Have a span while the request is encoded and handed to the courier."""
        span = self._tracer.begin("push", self._tracer.child_of(self._span))
        try:
            yield
        except Exception as error:
            self._tracer.fail(span, error)
            raise
        finally:
            span.end()

    def fail(self, error: Exception) -> None:
        """Mark it as answered with an error."""
        self._tracer.fail(self._span, error)

    def end(self, about: About) -> None:
        """End the first span, of which this is known by now."""
        self._span.set_attributes(about)
        self._span.end()

    def end_rpc(self, status: str) -> None:
        """End the first span of a gRPC request."""
        self.end({"rpc.grpc.status": status})

    def end_http(self, status: int) -> None:
        """End the first span of an HTTP request."""
        self.end({"http.response.status_code": status})


class Tracing:
    """Begins the traces of an API process's requests."""

    def __init__(self, tracer: Tracer, sampler: TraceSampler) -> None:
        """Trace those requests that `sampler` wants."""
        self.close = tracer.close
        self._tracer = tracer
        self._sampler = sampler

    def begin_http(
        self, method: str, route: str, model: str, environ: dict[str, Any]
    ) -> RequestTrace | None:
        """Begin an HTTP request's trace, if there is to be one, and leave it in `environ`."""
        about = {"http.request.method": method, "http.route": route}
        if "PATH_INFO" in environ:
            about["url.path"] = environ["PATH_INFO"]
        trace = self.begin(f"{method} {route}", model, environ, about)
        if trace is not None:
            environ[TRACE] = trace
        return trace

    def begin(
        self, name: str, model: str, headers: Mapping[str, Any], about: About
    ) -> RequestTrace | None:
        """Return a request's trace, None where it is not to be traced.

        `headers` are named as WSGI names them; `model` is empty where the body names it.
        """
        if not self._sampler.is_on(model):
            return None
        parent = None
        if TRACEPARENT_VARIABLE in headers:
            carrier = {"traceparent": headers[TRACEPARENT_VARIABLE]}
            if TRACESTATE_VARIABLE in headers:
                carrier["tracestate"] = headers[TRACESTATE_VARIABLE]
            parent = self._tracer.parent_in(carrier)
        is_recorded = None if parent is None else self._tracer.is_recorded(parent)
        if not self._sampler.takes(model, is_recorded):
            return None
        known = {"ferry.model": model, "ferry.request_id": headers.get(REQUEST_ID_VARIABLE, "")}
        span = self._tracer.begin(name, parent, is_server=True, about={**known, **about})
        return RequestTrace(self._tracer, span)


def note_failure(environ: Mapping[str, Any], error: Exception) -> None:
    """Mark a request's trace, if it has one, as answered with an error."""
    if (trace := environ.get(TRACE)) is not None:
        trace.fail(error)
