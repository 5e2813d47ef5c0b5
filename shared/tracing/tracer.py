"""Makes the spans of requests, by OpenTelemetry's library, and sends them off the requests' way.

The spans of one request, each as its parent's child:

    POST /v2/models/{model}/infer   API       the whole, from the request's head to its answer
      push                          API       encoded and handed to the courier
      queue                         instance  from the push to the claim
      batch                         instance  from the claim on, linked to every traced request
        forward                     instance  the forward pass
        publish                     instance  split, encoded, written to Redis

An ensemble has `ensemble` in place of `batch`, and in it a span for each step, whose children are
those of the step's model. What travels with a request is W3C's `traceparent` of the parent.
Source: https://www.w3.org/TR/trace-context/#traceparent-header
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping, Sequence
from threading import Thread
from typing import Any

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    Link,
    SpanKind,
    Status,
    StatusCode,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from shared.errors import FerryError

log = logging.getLogger(__name__)

CLOSE_SECONDS = 1.0
"""Given to the last spans at the end of a process; those that are not taken by then are lost."""
LIBRARIES = ("opentelemetry", "urllib3")
"""The loggers of what sends spans: what they say of a collector is said once, by us."""
UNKNOWN_SERVICE = "unknown_service"
_W3C = TraceContextTextMapPropagator()
Span = Any
"""One of OpenTelemetry's."""
About = Mapping[str, str | int | float | bool]


class Tracer:
    """One process's spans. Its collector may be away: then they are lost, and nobody waits."""

    def __init__(self, service: str, processor: Any) -> None:
        """Name the process `service`, unless OTEL_SERVICE_NAME does; spans go to `processor`."""
        self._provider = TracerProvider(
            sampler=ALWAYS_ON, resource=_resource(service), shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("ferry")

    def begin(
        self,
        name: str,
        parent: Context | None = None,
        *,
        is_server: bool = False,
        began_ns: int | None = None,
        links: Sequence[Link] = (),
        about: About | None = None,
    ) -> Span:
        """Return a span that began now, or then, in nanoseconds since the epoch."""
        return self._tracer.start_span(
            name,
            Context() if parent is None else parent,
            SpanKind.SERVER if is_server else SpanKind.INTERNAL,
            about,
            links,
            began_ns,
        )

    def note(self, name: str, parent: Context, began_ns: int, ended_ns: int, about: About) -> None:
        """Add a span that is over."""
        self.begin(name, parent, began_ns=began_ns, about=about).end(max(began_ns, ended_ns))

    @staticmethod
    def fail(span: Span, error: Exception) -> None:
        """Mark a span as one that ended with an error: by its code, for texts may quote clients."""
        code = error.code if isinstance(error, FerryError) else FerryError.code
        span.set_attribute("error.type", code)
        span.set_status(Status(StatusCode.ERROR, code))

    @staticmethod
    def parent_in(carrier: Mapping[str, str]) -> Context | None:
        """Return the parent that `traceparent` and `tracestate` name, None without a valid one."""
        found = _W3C.extract(carrier, Context())
        return found if get_current_span(found).get_span_context().is_valid else None

    @staticmethod
    def is_recorded(parent: Context) -> bool:
        """Tell whether the parent is recorded by whoever began it."""
        return bool(get_current_span(parent).get_span_context().trace_flags.sampled)

    @staticmethod
    def child_of(span: Span) -> Context:
        """Return the context of a span's children."""
        return set_span_in_context(span, Context())

    @staticmethod
    def link_to(parent: Context) -> Link:
        """Return a link to a context's span."""
        return Link(get_current_span(parent).get_span_context())

    @staticmethod
    def traceparent_of(span: Span) -> str:
        """Return the header that tells children elsewhere of a span."""
        found = span.get_span_context()
        return f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags:02x}"

    def close(self) -> None:
        """Send what is left, for a second at most."""
        ending = Thread(target=self._provider.shutdown, name="ferry-last-spans", daemon=True)
        ending.start()
        ending.join(CLOSE_SECONDS)


def processor_of(traces_url: str) -> BatchSpanProcessor:
    """Return what gathers spans and sends them to a collector, from a thread of its own."""
    return BatchSpanProcessor(_Outbound(OTLPSpanExporter(traces_url), traces_url))


class _Heard(logging.Handler):
    """Keeps the last line of a library, which nobody else sees."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.last = record.getMessage()


class _Outbound(SpanExporter):  # type: ignore[misc]
    """Sends by another exporter, and says once that it fails, and once that it does again."""

    def __init__(self, inner: SpanExporter, traces_url: str) -> None:
        self._inner = inner
        self._where = traces_url
        self._is_away = False
        self._heard = _Heard()
        for name in LIBRARIES:
            library = logging.getLogger(name)
            library.handlers, library.propagate = [self._heard], False

    def export(self, spans: Sequence[Any]) -> SpanExportResult:
        try:
            result = self._inner.export(spans)
            why = self._heard.last
        except Exception as error:  # a border: whatever a library raises, only traces are lost
            result, why = SpanExportResult.FAILURE, repr(error)
        is_away = result is not SpanExportResult.SUCCESS
        if is_away and not self._is_away:
            log.warning("%s takes no spans, traces are lost until it does: %s", self._where, why)
        elif self._is_away and not is_away:
            log.info("%s takes spans again", self._where)
        self._is_away = is_away
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()


def _resource(service: str) -> Resource:
    found = Resource.create({"host.name": socket.gethostname(), "process.pid": os.getpid()})
    named = str(found.attributes.get(SERVICE_NAME, UNKNOWN_SERVICE))
    if named.startswith(UNKNOWN_SERVICE):
        return found.merge(Resource({SERVICE_NAME: service}))
    return found
