"""A model's configuration as JSON, with the field names of Triton's model_config.proto.

GET /v2/models/<model>/config answers it: the `config.pbtxt` with every default that has
an effect filled in, and all else that the proto prints when it is unset. It goes into the spec,
because the API has no protobuf; `json_format.ParseDict` turns it back into the message.
"""

from __future__ import annotations

from typing import Any

from tritonclient.grpc import model_config_pb2

from worker.repository.config.formats import BY_BACKEND


def config_json(message: Any, name: str, backend: str, filename: str) -> dict[str, Any]:
    """Return the configuration of model `name` as served: by `backend`, from the file `filename`.

    Source of the defaults: NormalizeModelConfig and NormalizeInstanceGroup in
    https://github.com/triton-inference-server/core/blob/main/src/model_config_utils.cc.
    A group's kind stays as declared, because each machine decides by its own devices.
    """
    filled = model_config_pb2.ModelConfig()
    filled.CopyFrom(message)
    found = BY_BACKEND.get(backend)
    filled.name = name
    if found is not None:
        filled.platform = filled.platform or found.platform
        filled.backend = filled.backend or found.triton_backend
    filled.default_model_filename = filename
    if not filled.HasField("version_policy"):
        filled.version_policy.latest.num_versions = 1
    if not filled.instance_group:
        filled.instance_group.add()
    for index, group in enumerate(filled.instance_group):
        group.name = group.name or f"{name}_{index}"
        group.count = max(1, group.count)
    if filled.HasField("dynamic_batching") and filled.max_batch_size:
        preferred = filled.dynamic_batching.preferred_batch_size
        if not preferred:
            preferred.append(filled.max_batch_size)
    return message_json(filled)


def message_json(message: Any) -> dict[str, Any]:
    """Return all fields of a message but unset submessages and members of a oneof.

    Enums are their names. Unlike `json_format` it leaves 64-bit integers numbers, as Triton does.
    """
    return {
        field.name: _field(field, getattr(message, field.name))
        for field in message.DESCRIPTOR.fields
        if not field.has_presence or message.HasField(field.name)
    }


def _field(field: Any, value: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        of_value = field.message_type.fields_by_name["value"]
        return {str(key): _single(of_value, value[key]) for key in sorted(value)}
    if field.is_repeated:
        return [_single(field, item) for item in value]
    return _single(field, value)


def _single(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return message_json(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known else value
    return value
