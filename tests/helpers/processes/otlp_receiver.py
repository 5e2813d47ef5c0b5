"""A collector on loopback: takes OTLP over HTTP, and knows the spans that it was sent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from waiting import wait_until

ERROR = 2
"""OTLP's status code of a span that failed."""


class ReceivedSpan(NamedTuple):
    """One span, as it came; times in nanoseconds, ids and links' span ids in hex digits."""

    name: str
    service: str
    trace: str
    id: str
    parent: str
    began: int
    ended: int
    failed: bool
    about: dict[str, Any]
    links: frozenset[str]


class Receiver:
    """The spans that came, and what does not belong to the protocol."""

    def __init__(self) -> None:
        self.spans: list[ReceivedSpan] = []
        self.faults: list[str] = []
        self.status = 200
        self.url = ""

    def take(self, path: str, content_type: str | None, body: bytes) -> None:
        if path != "/v1/traces" or content_type != "application/x-protobuf":
            self.faults.append(f"{path} {content_type}")
        asked = ExportTraceServiceRequest.FromString(body)
        for of_resource in asked.resource_spans:
            service = _about(of_resource.resource.attributes)["service.name"]
            for scope in of_resource.scope_spans:
                self.spans += [_span(each, service) for each in scope.spans]

    def trace(self, trace: str, *names: str) -> list[ReceivedSpan]:
        """Return a trace's spans once it has those of these names, in the order of their starts."""

        def found() -> list[ReceivedSpan]:
            return [span for span in list(self.spans) if span.trace == trace]

        wait_until(
            lambda: sorted(names) == sorted(span.name for span in found()),
            30,
            f"{sorted(names)} of {trace}",
        )
        return sorted(found(), key=lambda span: (span.began, -span.ended))


def _about(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


def _span(span: Any, service: str) -> ReceivedSpan:
    return ReceivedSpan(
        span.name, service, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(),
        span.start_time_unix_nano, span.end_time_unix_nano, span.status.code == ERROR,
        _about(span.attributes), frozenset(link.span_id.hex() for link in span.links),
    )  # fmt: skip


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Listen until the block ends."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if receiver.status == 200:
                receiver.take(self.path, self.headers["Content-Type"], body)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(receiver.status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
