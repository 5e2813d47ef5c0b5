"""The methods of `inference.GRPCInferenceService`, answered by the same services as HTTP.

Source: https://github.com/triton-inference-server/common/blob/main/protobuf/grpc_service.proto
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message_factory import GetMessageClass
from tritonclient.grpc import service_pb2 as proto

from api.access.guard import may_know
from api.access.shares import KeyShares
from api.infer.descriptions import index_for, model_description, server_description
from api.infer.model_control import load_by_request, unload_by_request
from api.infer.triton_statistics import of_triton
from api.payloads.infer_request import SHARED_MEMORY
from api.rpc.door import SHARED_MEMORY_METHODS, Call, Door
from api.rpc.inference import InferCalls
from api.rpc.places import OpenStreams, Places
from api.rpc.reading import InferMessage, read_infer, read_message
from api.rpc.stream import STOPPING, Stream
from api.services import Services
from shared.errors import BadRequest, QueueFull, UnknownModel, Unsupported, shown
from shared.messages import Parameters
from shared.registry.repository_index import repository_index

SERVICE = proto.DESCRIPTOR.services_by_name["GRPCInferenceService"]


class GRPCInferenceService:
    """Every method of the service; each call has a thread."""

    def __init__(self, services: Services) -> None:
        """Answer by `services`, at most `grpc_threads` infer requests at a time."""
        self._services = services
        self._catalog = services.catalog
        settings, guard = services.settings, services.guard
        bodies = KeyShares(settings.max_bodies_bytes, guard.keyring)
        self._calls = InferCalls(services.catalog, services.queues, guard.admission, bodies)
        self._places = Places(settings.grpc_threads, guard.keyring)
        self._streams = OpenStreams()
        self._stopping = False

    def handlers(self, door: Door) -> dict[str, grpc.RpcMethodHandler]:
        """Return all methods as a server takes them, behind the door."""
        found = {}
        for method in SERVICE.methods:
            name, kind = method.name, GetMessageClass(method.input_type)
            answer, reply = getattr(self, name), GetMessageClass(method.output_type)
            if method.client_streaming:
                found[name] = door.many(name, answer, None, reply)
            else:
                read = read_infer if name == "ModelInfer" else partial(read_message, kind)
                found[name] = door.one(name, answer, read, reply)
        return found

    def ServerLive(self, _request: Any, _call: Call) -> Any:
        """Answer true while this process answers at all."""
        return proto.ServerLiveResponse(live=True)

    def ServerReady(self, _request: Any, _call: Call) -> Any:
        """Answer whether what FERRY_READINESS wants is served, and this process not about to go."""
        is_ready = not (self._stopping or self._services.readiness.why_not())
        return proto.ServerReadyResponse(ready=is_ready)

    def ModelReady(self, request: Any, _call: Call) -> Any:
        """Answer whether an instance serves the model; an unknown one is not ready, as in Triton.

        Clients ask this until it is true, and HTTP's 404 means false to them as well.
        """
        try:
            is_ready = self._catalog.is_ready(request.name, request.version or None)
        except UnknownModel:
            is_ready = False
        return proto.ModelReadyResponse(ready=is_ready)

    def ServerMetadata(self, _request: Any, _call: Call) -> Any:
        """Answer the server's name, version and extensions."""
        return proto.ServerMetadataResponse(**server_description())

    def ModelMetadata(self, request: Any, _call: Call) -> Any:
        """Answer a model's inputs, outputs and versions."""
        spec = self._catalog.find(request.name, request.version or None)
        versions = self._catalog.served_versions(request.name)
        return proto.ModelMetadataResponse(**model_description(spec, versions))

    def ModelConfig(self, request: Any, _call: Call) -> Any:
        """Answer a model's whole configuration."""
        spec = self._catalog.find(request.name, request.version or None)
        response = proto.ModelConfigResponse()
        ParseDict(spec.config, response.config)
        return response

    def ModelStatistics(self, request: Any, call: Call) -> Any:
        """Answer the figures of every registered version, of a model's, or of one."""
        key = call.key
        versions = self._catalog.versions(request.name or None, request.version or None)
        specs = [spec for spec in versions if may_know(key, spec.name)]
        found = [of_triton(each) for each in self._services.statistics(specs)]
        return proto.ModelStatisticsResponse(model_stats=found)

    def RepositoryIndex(self, request: Any, call: Call) -> Any:
        """Answer all models with their states."""
        self._catalog.refresh()
        entries = repository_index(self._catalog.snapshot(), ready_only=request.ready)
        entries = index_for(call.key, entries)
        return proto.RepositoryIndexResponse(models=entries)

    def RepositoryModelLoad(self, request: Any, _call: Call) -> Any:
        """Answer when the model is ready on every machine."""
        load_by_request(self._services.model_control, request.model_name, _parameters(request))
        return proto.RepositoryModelLoadResponse()

    def RepositoryModelUnload(self, request: Any, _call: Call) -> Any:
        """Answer when no request can reach the model any more."""
        parameters = _parameters(request)
        control = self._services.model_control
        unload_by_request(control, self._catalog, request.model_name, parameters)
        return proto.RepositoryModelUnloadResponse()

    def LogSettings(self, request: Any, _call: Call) -> Any:
        """Set the log settings that the request names, if any, and answer all."""
        return _log_settings_response(self._services.log_settings.change(_log_changes(request)))

    def TraceSetting(self, request: Any, _call: Call) -> Any:
        """Set the trace settings that the request names, if any, and answer all."""
        wanted = {name: list(setting.value) for name, setting in request.settings.items()}
        settings = self._services.trace_settings.change(request.model_name or None, wanted)
        response = proto.TraceSettingResponse()
        for name, values in settings.items():
            response.settings[name].value.extend(values)
        return response

    def ModelInfer(self, request: InferMessage, call: Call) -> Any:
        """Answer one request. A client that leaves takes it off the queue."""
        self._check_stopping()
        with self._places.single(call.key):
            asked = self._calls.push(request, call.context.time_remaining(), call.caller)
            if not call.context.add_callback(asked.cancel):
                asked.cancel()
            response = proto.ModelInferResponse()
            self._calls.respond(asked, response)
            return response

    def ModelStreamInfer(self, requests: Iterator[bytes], call: Call) -> Iterator[Any]:
        """Answer each request of a stream, many of which are under way at once, in order."""
        self._check_stopping()
        idle_seconds = self._services.settings.grpc_idle_seconds
        stream = Stream(self._calls, self._places, requests, call, idle_seconds)
        with self._streams.place(stream):
            if self._stopping:
                stream.finish()
            yield from stream.answers()

    def stop(self) -> None:
        """Refuse new infer calls, and end every stream once that is answered which was read.

        Streams might stay open for ever; a client learns that its own was cut.
        """
        self._stopping = True
        self._streams.finish()

    def _check_stopping(self) -> None:
        if self._stopping:
            raise QueueFull(STOPPING)

    def _refuse_shared_memory(self, _request: Any, _call: Call) -> Any:
        raise Unsupported(SHARED_MEMORY)


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


for _name in SHARED_MEMORY_METHODS:
    setattr(GRPCInferenceService, _name, GRPCInferenceService._refuse_shared_memory)
