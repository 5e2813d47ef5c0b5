"""The door of every call: an id, a key that may do this, a message of bounded cost, a status.

A method that stands in no table here is for admins, as a route of HTTP's (`api.routes.door`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from operator import itemgetter
from threading import Lock
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, Self
from urllib.parse import unquote

import grpc

from api.infer.public_errors import public_error
from api.rpc.errors import refuse, status_code
from api.services import Services
from api.tracing import TRACEPARENT_VARIABLE, TRACESTATE_VARIABLE, RequestTrace
from shared.access.api_key import ApiKey, Role
from shared.errors import BadRequest, QueueFull
from shared.logs import (
    IN_HAND,
    REQUEST_ID_HEADER,
    REQUEST_ID_VARIABLE,
    AccessLog,
    RequestIds,
)  # fmt: skip

OPEN_METHODS = frozenset({"ServerLive", "ServerReady", "Check", "Watch"})
"""Probes have no keys; of single models the health service asks for one itself."""
SHARED_MEMORY_METHODS = tuple(
    f"{kind}SharedMemory{verb}"
    for kind in ("System", "Cuda")
    for verb in ("Status", "Register", "Unregister")
)
FOR_INFER = frozenset(
    {
        "ModelReady", "ServerMetadata", "ModelMetadata", "ModelConfig", "ModelStatistics",
        "RepositoryIndex", "ModelInfer", "ModelStreamInfer", "List", *SHARED_MEMORY_METHODS,
    }
)  # fmt: skip
MOST_ARRIVING = 64
"""Calls whose message has not come yet, beside FERRY_GRPC_THREADS; each has a thread."""
MOST_FIRST = 64
"""More such, each the only one of its connection: else one that holds many would shut out all."""
REQUEST_ID_KEY = REQUEST_ID_HEADER.lower()
TRACE_KEYS = {"traceparent": TRACEPARENT_VARIABLE, "tracestate": TRACESTATE_VARIABLE}
SERVICE_NAME = "inference.GRPCInferenceService"
TRACED_METHODS = ("ModelInfer", "ModelStreamInfer")
Answer = Callable[[Any, "Call"], Any]


class Caller(NamedTuple):
    """Who asks: the API key, None where there are none, and what log lines call the request.

    `trace` is the request's, None where it is not traced.
    """

    key: ApiKey | None = None
    known_as: str = ""
    trace: RequestTrace | None = None


NOBODY = Caller()


def role_of(method: str) -> Role | None:
    """Return who may ask a method; None is everybody."""
    if method in OPEN_METHODS:
        return None
    return "infer" if method in FOR_INFER else "admin"


class Door:
    """One process's door.

    subtle: every method is one of a stream of messages to the library, whatever it is to clients,
    who see no difference. So it parses none of them, in its only thread, and a call whose message
    never comes can be ended.
    """

    def __init__(self, services: Services) -> None:
        """Let in whom the services' guard does."""
        settings = services.settings
        self.guard = services.guard
        self.tracing = services.tracing
        self.refusals = services.refusals
        self.ids = RequestIds()
        self.access = AccessLog(is_on=settings.access_log)
        self._most_arriving = settings.grpc_threads + MOST_ARRIVING
        self._patience_seconds = settings.request_timeout_seconds
        self._changing = Lock()
        self._arriving: dict[grpc.ServicerContext, tuple[str, float]] = {}

    def one(
        self, name: str, answer: Answer, read: Callable[[bytes], Any], reply: Any
    ) -> grpc.RpcMethodHandler:
        """Return a method of one message and one `reply`, as a server takes it."""

        def respond(requests: Iterator[bytes], context: grpc.ServicerContext) -> Any:
            with Call(self, context, name) as call:
                return answer(call.read(requests, read), call)

        return grpc.stream_unary_rpc_method_handler(respond, None, reply.SerializeToString)

    def many(
        self, name: str, answer: Answer, read: Callable[[bytes], Any] | None, reply: Any
    ) -> grpc.RpcMethodHandler:
        """Return a method of many replies; without `read` it gets its messages as they came."""

        def respond(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Any]:
            with Call(self, context, name) as call:
                yield from answer(call.read(requests, read) if read else requests, call)

        return grpc.stream_stream_rpc_method_handler(respond, None, reply.SerializeToString)

    def first(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        """Return a call's message once it is there; raises BadRequest when none comes.

        When as many wait for theirs as may, one makes room that has waited for as long as a body
        may be silent over HTTP, or QueueFull is raised: slow clients are no foes.
        """
        connection, now = context.peer(), time.monotonic()
        with self._changing:
            if len(self._arriving) >= self._most_arriving:
                self._make_room(connection, now)
            self._arriving[context] = connection, now
        try:
            return next(requests)
        except StopIteration:
            raise BadRequest("the call has no message") from None
        finally:
            with self._changing:
                self._arriving.pop(context, None)

    def _make_room(self, newcomer: str, now: float) -> None:
        """Cancel who waits longest, and too long, on the connection with most calls that do."""
        counts = Counter(connection for connection, _ in self._arriving.values())
        if newcomer not in counts and len(self._arriving) < self._most_arriving + MOST_FIRST:
            return
        late = [
            (counts[connection], -since, context)
            for context, (connection, since) in self._arriving.items()
            if now - since >= self._patience_seconds
        ]
        if not late:
            raise QueueFull(f"{len(self._arriving)} calls wait for their messages, no more may")
        *_, oldest = max(late, key=itemgetter(0, 1))
        self._arriving.pop(oldest)
        oldest.cancel()


class Call:
    """One call, from its beginning to its status: what its block raises becomes that."""

    def __init__(self, door: Door, context: grpc.ServicerContext, method: str) -> None:
        """Begin; `method` is one of the tables' names."""
        self._began = time.perf_counter()
        self._door = door
        self._role = role_of(method)
        self._metadata = context.invocation_metadata()
        self._model = self._version = ""
        self.context = context
        self.method = method
        self.key: ApiKey | None = None
        self._trace: RequestTrace | None = None
        given = next((value for name, value in self._metadata if name == REQUEST_ID_KEY), None)
        self.known_as = door.ids.of(given)

    @property
    def caller(self) -> Caller:
        """Return who asks."""
        return Caller(self.key, self.known_as, self._trace)

    def __enter__(self) -> Self:
        """Tell the client its id, and let it in."""
        IN_HAND.set((self.known_as,))
        self.context.send_initial_metadata(((REQUEST_ID_KEY, self.known_as),))
        try:
            self.let_in()
        except Exception as error:  # a border: what the block would raise
            self._end(error)
        return self

    def let_in(self) -> None:
        """Find the key and what it may do by now; raises as `Guard.enter`.

        A call that stays open asks again for each request: keys change, expire and are revoked.
        """
        if self._role is not None:
            self.key = self._door.guard.enter_call(self._metadata, self._role)

    def read(self, requests: Iterator[bytes], read: Callable[[bytes], Any]) -> Any:
        """Return the call's message, read by `read`, if the key may ask the model that it names."""
        request = read(self._door.first(requests, self.context))
        named = getattr(request, "message", request)
        self._model = getattr(named, "model_name", "") or getattr(named, "name", "")
        self._version = getattr(named, "model_version", "") or getattr(named, "version", "")
        if self.method == "ModelInfer":
            self._trace = self.begin_trace(self._model)
        if self.key is not None and self._model:
            self._door.guard.check(self.key, self._role, self._model)
        return request

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """End the call as a status, unless its client has left."""
        if isinstance(error, Exception) and not isinstance(error, grpc.RpcError):
            self._end(error)
        if self._trace is not None:
            self._trace.end_rpc("OK" if error is None else "CANCELLED")
        self.tell("OK" if error is None else "CANCELLED", self._began, self._model, self._version)

    def _end(self, error: Exception) -> NoReturn:
        """End the call as an error's status; a border, as Flask's own error handlers are."""
        ours = public_error(error, self.method, self.key)
        self.refuse_one(error, status_code(ours).name, self._trace or self.begin_trace(self._model))
        self.tell(status_code(ours).name, self._began, self._model, self._version)
        refuse(self.context, ours)

    def begin_trace(self, model: str) -> RequestTrace | None:
        """Return the trace of one request of the call, None where there is to be none."""
        tracing = self._door.tracing
        if tracing is None or self.method not in TRACED_METHODS:
            return None
        headers = {TRACE_KEYS[name]: value for name, value in self._metadata if name in TRACE_KEYS}
        headers[REQUEST_ID_VARIABLE] = self.known_as
        about = {"rpc.system": "grpc", "rpc.service": SERVICE_NAME, "rpc.method": self.method}
        return tracing.begin(f"{SERVICE_NAME}/{self.method}", model, headers, about)

    def refuse_one(self, error: Exception, status: str, trace: RequestTrace | None) -> None:
        """Count a request that ends with an error, and end its trace so."""
        self._door.refusals.note(error)
        if trace is not None:
            trace.fail(error)
            trace.end_rpc(status)

    def tell(self, status: str, began: float, model: str, version: str) -> None:
        """Write a line in the access log, of the call or of one request of its stream."""
        access = self._door.access
        if access.is_on:
            key = self.key.name if self.key else ""
            access.write(
                _host(self.context.peer()), self.method, status, began,
                key=key, model=model, version=version,
            )  # fmt: skip


def _host(peer: str) -> str:
    """Return the address in the library's name of a client, as `ipv4:127.0.0.1:40000`."""
    kind, _, rest = peer.partition(":")
    host = rest.rpartition(":")[0] if kind in ("ipv4", "ipv6") else rest
    return unquote(host).strip("[]") or "-"
