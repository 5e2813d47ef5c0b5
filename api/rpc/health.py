"""gRPC's own health service, by which Kubernetes' probes and clients' load balancers ask.

Its messages are described here, for they are three. Source:
https://github.com/grpc/grpc/blob/master/doc/health-checking.md
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from threading import BoundedSemaphore, Event
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.descriptor_pool import DescriptorPool

from api.access.guard import Guard, may_know
from api.infer.readiness import Readiness
from api.rpc.door import Call, Door
from api.rpc.reading import read_message
from shared.errors import UnknownModel, Unsupported
from shared.registry.catalog import Catalog

PACKAGE = "grpc.health.v1"
SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3
WHOLE = ("", "inference.GRPCInferenceService")
"""Names of the whole server; the others are models', or a version's as name/version."""
MAX_WATCHES = 256
"""Each has a thread."""
WATCH_SECONDS = 0.5


def _messages() -> list[Any]:
    """Return the classes HealthCheckRequest, HealthCheckResponse and HealthListResponse."""
    file = descriptor_pb2.FileDescriptorProto(name="health", package=PACKAGE, syntax="proto3")
    field = descriptor_pb2.FieldDescriptorProto
    request = file.message_type.add(name="HealthCheckRequest").field
    request.add(name="service", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    # subtle: of an enum's numbers nothing else is written than of an integer's.
    response = file.message_type.add(name="HealthCheckResponse").field
    response.add(name="status", number=1, type=field.TYPE_INT32, label=field.LABEL_OPTIONAL)
    listed = file.message_type.add(name="HealthListResponse")
    entry = listed.nested_type.add(name="StatusesEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    entry.field.add(
        name="value", number=2, type=field.TYPE_MESSAGE, label=field.LABEL_OPTIONAL,
        type_name=f".{PACKAGE}.HealthCheckResponse",
    )  # fmt: skip
    listed.field.add(
        name="statuses", number=1, type=field.TYPE_MESSAGE, label=field.LABEL_REPEATED,
        type_name=f".{PACKAGE}.HealthListResponse.StatusesEntry",
    )  # fmt: skip
    pool = DescriptorPool()  # of its own: others of this process may have these names too
    pool.Add(file)
    names = [f"{PACKAGE}.{message.name}" for message in file.message_type]
    return [message_factory.GetMessageClass(pool.FindMessageTypeByName(name)) for name in names]


HealthCheckRequest, HealthCheckResponse, HealthListResponse = _messages()


class Health:
    """Answers whether the server, a model or a version serves, and tells of changes."""

    def __init__(self, catalog: Catalog, readiness: Readiness, guard: Guard) -> None:
        """Answer by `catalog`, of the whole server by `readiness`.

        Of single models to keys alone, where there are some.
        """
        self._catalog = catalog
        self._readiness = readiness
        self._guard = guard
        self._watches = BoundedSemaphore(MAX_WATCHES)
        self._stopping = Event()

    def handlers(self, door: Door) -> dict[str, grpc.RpcMethodHandler]:
        """Return the service's methods as a server takes them, behind the door."""
        read = partial(read_message, HealthCheckRequest)
        return {
            "Check": door.one("Check", self.check, read, HealthCheckResponse),
            "Watch": door.many("Watch", self.watch, read, HealthCheckResponse),
            "List": door.one("List", self.list, read, HealthListResponse),
        }

    def stop(self) -> None:
        """Answer that nothing serves, and end the watches."""
        self._stopping.set()

    def check(self, request: Any, call: Call) -> Any:
        """Answer one status; NOT_FOUND for a name that is no model's."""
        self._enter(request.service, call)
        return HealthCheckResponse(status=self._status(request.service))

    def list(self, _request: Any, call: Call) -> Any:
        """Answer the status of the server and of every model."""
        models = self._catalog.snapshot().models
        known = sorted(name for name in models if may_know(call.key, name))
        statuses = {
            name: HealthCheckResponse(status=self._status_or_unknown(name))
            for name in (*WHOLE, *known)
        }
        return HealthListResponse(statuses=statuses)

    def watch(self, request: Any, call: Call) -> Iterator[Any]:
        """Answer the status, and each that follows, until the client leaves or the server stops.

        UNIMPLEMENTED, by which clients take the server for healthy, beyond MAX_WATCHES.
        """
        if not self._watches.acquire(blocking=False):
            raise Unsupported(f"{MAX_WATCHES} watches are open, ask by Check")
        try:
            last = None
            while call.context.is_active():
                self._enter(request.service, call)  # each time: its key may be good no more
                stopping = self._stopping.is_set()
                status = self._status_or_unknown(request.service)
                if status != last:
                    yield HealthCheckResponse(status=status)
                    last = status
                if stopping:
                    return
                self._stopping.wait(WATCH_SECONDS)
        finally:
            self._watches.release()

    def _enter(self, service: str, call: Call) -> None:
        """Let everybody ask for the whole server; raises Unauthorized and Forbidden."""
        if service not in WHOLE:
            model = service.partition("/")[0]
            self._guard.enter_call(call.context.invocation_metadata(), "infer", model)

    def _status_or_unknown(self, service: str) -> int:
        try:
            return self._status(service)
        except UnknownModel:
            return SERVICE_UNKNOWN

    def _status(self, service: str) -> int:
        """Return whether what is called so serves; raises UnknownModel."""
        if self._stopping.is_set():
            return NOT_SERVING
        if service in WHOLE:
            return NOT_SERVING if self._readiness.why_not() else SERVING
        name, _, version = service.partition("/")
        return SERVING if self._catalog.is_ready(name, version or None) else NOT_SERVING
