"""The methods of `inference.GRPCInferenceService`, answered by the same services as HTTP.

Source: https://github.com/triton-inference-server/common/blob/main/protobuf/grpc_service.proto
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from threading import BoundedSemaphore
from typing import Any, TypeVar

import grpc
from google.protobuf.json_format import ParseDict
from tritonclient.grpc import service_pb2 as proto
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceServicer

from api.access.guard import may_know
from api.infer.descriptions import index_for, model_description, server_description
from api.infer.model_control import load_by_request, unload_by_request
from api.infer.triton_statistics import of_triton
from api.payloads.infer_request import SHARED_MEMORY
from api.rpc.errors import refuse
from api.rpc.inference import InferCalls
from api.rpc.stream import Stream
from api.services import Services
from shared.access.api_key import ApiKey, Role
from shared.errors import BadRequest, QueueFull, UnknownModel, Unsupported, shown
from shared.messages import Parameters
from shared.registry.repository_index import repository_index

Reply = TypeVar("Reply")
Method = Callable[[Any, Any, grpc.ServicerContext], Reply]
STOPPING = "the server is stopping"


def answering(role: Role | None) -> Callable[[Method[Reply]], Method[Reply]]:
    """Return a decorator: errors become the call's status, and keys of `role` alone are let in.

    None lets everybody in.
    """

    def decorate(method: Method[Reply]) -> Method[Reply]:
        @wraps(method)
        def answer(service: Any, request: Any, context: grpc.ServicerContext) -> Reply:
            key = None
            try:
                if role is not None:
                    key = service.enter(context, role, _model_of(request))
                return method(service, request, context)
            except Exception as error:  # a border, as Flask's own error handlers are
                refuse(context, error, method.__name__, key)

        return answer

    return decorate


def _model_of(request: Any) -> str | None:
    """Return the model that a message names, None for one that names none."""
    return getattr(request, "model_name", "") or getattr(request, "name", "") or None


def unsupported(name: str, reason: str) -> Method[None]:
    """Return a method that is refused for `reason`."""

    def refused(_service: Any, _request: Any, _context: grpc.ServicerContext) -> None:
        raise Unsupported(reason)

    refused.__name__ = name
    return answering("infer")(refused)


class GRPCInferenceService(GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Every method of the service; each call has a thread."""

    def __init__(self, services: Services) -> None:
        """Answer by `services`, at most `grpc_threads` infer calls at a time; a stream is one."""
        self._services = services
        self._catalog = services.catalog
        self._guard = services.guard
        self._calls = InferCalls(services.catalog, services.queues, services.guard.admission)
        self._max_calls = max_calls = services.settings.grpc_threads
        self._places = BoundedSemaphore(max_calls)
        self._streams: set[Stream] = set()
        self._stopping = False

    @answering(None)
    def ServerLive(self, _request: Any, _context: grpc.ServicerContext) -> Any:
        """Answer true while this process answers at all."""
        return proto.ServerLiveResponse(live=True)

    @answering(None)
    def ServerReady(self, _request: Any, _context: grpc.ServicerContext) -> Any:
        """Answer whether what FERRY_READINESS wants is served, and this process not about to go."""
        is_ready = not (self._stopping or self._services.readiness.why_not())
        return proto.ServerReadyResponse(ready=is_ready)

    @answering("infer")
    def ModelReady(self, request: Any, _context: grpc.ServicerContext) -> Any:
        """Answer whether an instance serves the model; an unknown one is not ready, as in Triton.

        Clients ask this until it is true, and HTTP's 404 means false to them as well.
        """
        try:
            is_ready = self._catalog.is_ready(request.name, request.version or None)
        except UnknownModel:
            is_ready = False
        return proto.ModelReadyResponse(ready=is_ready)

    @answering("infer")
    def ServerMetadata(self, _request: Any, _context: grpc.ServicerContext) -> Any:
        """Answer the server's name, version and extensions."""
        return proto.ServerMetadataResponse(**server_description())

    @answering("infer")
    def ModelMetadata(self, request: Any, _context: grpc.ServicerContext) -> Any:
        """Answer a model's inputs, outputs and versions."""
        spec = self._catalog.find(request.name, request.version or None)
        versions = self._catalog.served_versions(request.name)
        return proto.ModelMetadataResponse(**model_description(spec, versions))

    @answering("infer")
    def ModelConfig(self, request: Any, _context: grpc.ServicerContext) -> Any:
        """Answer a model's whole configuration."""
        spec = self._catalog.find(request.name, request.version or None)
        response = proto.ModelConfigResponse()
        ParseDict(spec.config, response.config)
        return response

    @answering("infer")
    def ModelStatistics(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Answer the figures of every registered version, of a model's, or of one."""
        key = self.enter(context, "infer")
        versions = self._catalog.versions(request.name or None, request.version or None)
        specs = [spec for spec in versions if may_know(key, spec.name)]
        found = [of_triton(each) for each in self._services.statistics(specs)]
        return proto.ModelStatisticsResponse(model_stats=found)

    @answering("infer")
    def RepositoryIndex(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Answer all models with their states."""
        self._catalog.refresh()
        entries = repository_index(self._catalog.snapshot(), ready_only=request.ready)
        entries = index_for(self.enter(context, "infer"), entries)
        return proto.RepositoryIndexResponse(models=entries)

    @answering("admin")
    def RepositoryModelLoad(self, request: Any, _context: grpc.ServicerContext) -> Any:
        """Answer when the model is ready on every machine."""
        load_by_request(self._services.model_control, request.model_name, _parameters(request))
        return proto.RepositoryModelLoadResponse()

    @answering("admin")
    def RepositoryModelUnload(self, request: Any, _context: grpc.ServicerContext) -> Any:
        """Answer when no request can reach the model any more."""
        parameters = _parameters(request)
        control = self._services.model_control
        unload_by_request(control, self._catalog, request.model_name, parameters)
        return proto.RepositoryModelUnloadResponse()

    @answering("admin")
    def LogSettings(self, request: Any, _context: grpc.ServicerContext) -> Any:
        """Set the log settings that the request names, if any, and answer all."""
        return _log_settings_response(self._services.log_settings.change(_log_changes(request)))

    @answering("admin")
    def TraceSetting(self, request: Any, _context: grpc.ServicerContext) -> Any:
        """Set the trace settings that the request names, if any, and answer all."""
        wanted = {name: list(setting.value) for name, setting in request.settings.items()}
        settings = self._services.trace_settings.change(request.model_name or None, wanted)
        response = proto.TraceSettingResponse()
        for name, values in settings.items():
            response.settings[name].value.extend(values)
        return response

    def enter(
        self, context: grpc.ServicerContext, role: Role, model: str | None = None
    ) -> ApiKey | None:
        """Return the key of a call; raises Unauthorized and Forbidden."""
        return self._guard.enter_call(context.invocation_metadata(), role, model)

    @answering("infer")
    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Answer one request. A client that leaves takes it off the queue."""
        key = self.enter(context, "infer", request.model_name)
        with self._place():
            asked = self._calls.push(request, context.time_remaining(), key)
            if not context.add_callback(asked.cancel):
                asked.cancel()
            response = proto.ModelInferResponse()
            self._calls.respond(asked, response)
            return response

    def ModelStreamInfer(self, requests: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        """Answer each request of a stream, many of which are under way at once, in order."""
        key = None
        try:
            key = self.enter(context, "infer")
            stream = Stream(self._calls, requests, context, key)
        except Exception as error:  # a border, as in `answering`
            refuse(context, error, "ModelStreamInfer", key)
        try:
            with self._place():
                self._streams.add(stream)
                if self._stopping:
                    stream.finish()
                yield from stream.answers()
                if stream.cut:
                    raise QueueFull(STOPPING)
        except Exception as error:  # a border, as in `answering`
            refuse(context, error, "ModelStreamInfer", key)
        finally:
            self._streams.discard(stream)

    def stop(self) -> None:
        """Refuse new infer calls, and end every stream once that is answered which was read.

        Streams might stay open for ever; a client learns that its own was cut.
        """
        self._stopping = True
        for stream in list(self._streams):
            stream.finish()

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._stopping:
            raise QueueFull(STOPPING)
        if not self._places.acquire(blocking=False):
            raise QueueFull(f"{self._max_calls} infer calls are under way, which is the limit")
        try:
            yield
        finally:
            self._places.release()


def _parameters(request: Any) -> Parameters:
    """Return the parameters of a repository request; those that hold files have no value."""
    found = {}
    for name, parameter in request.parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        found[name] = "" if kind in (None, "bytes_param") else getattr(parameter, kind)
    return found


def _log_changes(request: proto.LogSettingsRequest) -> dict[str, Any]:
    """Return the wanted changes, as HTTP's body has them; raises BadRequest."""
    found = {}
    for name, value in request.settings.items():
        choice = value.WhichOneof("parameter_choice")
        if choice is None:
            raise BadRequest(f"log setting {shown(name)} has no value")
        found[name] = getattr(value, choice)
    return found


def _log_settings_response(settings: Mapping[str, Any]) -> proto.LogSettingsResponse:
    """Return all settings."""
    response = proto.LogSettingsResponse()
    for name, value in settings.items():
        setting = response.settings[name]
        if isinstance(value, bool):
            setting.bool_param = value
        elif isinstance(value, int):
            setting.uint32_param = value
        else:
            setting.string_param = value
    return response


for _name in ("Status", "Register", "Unregister"):
    for _kind in ("SystemSharedMemory", "CudaSharedMemory"):
        setattr(GRPCInferenceService, _kind + _name, unsupported(_kind + _name, SHARED_MEMORY))
