"""Models that stand in the registry without a worker, for what the API refuses by itself."""

from __future__ import annotations

import numpy as np

from shared.drift.counts import DriftCounts
from shared.drift.reference import Reference, class_histogram
from shared.model_spec import ImageInput, ModelSpec, TensorSpec
from shared.registry.desired_state import ModelReport, Serving, SupervisorReport
from shared.registry.desired_store import DesiredStore
from shared.registry.keys import RegistryKeys
from shared.registry.registry import Registry
from shared.registry.snapshot import InstanceRecord
from shared.settings import Settings
from shared.wire.client import connect

SUPERVISOR = "nobody"


def spec(name: str, *inputs: TensorSpec, image: ImageInput | None = None) -> ModelSpec:
    """Describe version 1 of a model with one FP32 output of three columns and batches of 32."""
    return ModelSpec(
        name=name,
        version="1",
        platform="pytorch_libtorch",
        max_batch_size=32,
        inputs=inputs,
        outputs=(TensorSpec(name="out", datatype="FP32", dims=(3,)),),
        image=image,
    )


def register(settings: Settings, *specs: ModelSpec, ready: bool = True) -> Registry:
    """Write `specs` into the registry, `ready` ones with an instance that never claims anything."""
    registry = Registry(connect(settings.redis_url), settings.key_prefix)
    registry.beat(SUPERVISOR, 600.0)
    for model in specs:
        registry.add_model(model)
        if ready:
            registry.put_instance(
                InstanceRecord(
                    id=f"{model.name}-0",
                    supervisor=SUPERVISOR,
                    model=model.name,
                    version=model.version,
                    state="ready",
                )
            )
    return registry


def report_failure(settings: Settings, name: str, reason: str) -> None:
    """Have the supervisor say why a model's directory cannot be read."""
    with connect(settings.redis_url) as redis:
        report = SupervisorReport(models={name: ModelReport(reason=reason)})
        DesiredStore(redis, settings.key_prefix).put_report(SUPERVISOR, report)


def register_shadow(settings: Settings, served: ModelSpec) -> ModelSpec:
    """Have version 2 of a model be version 1's shadow, and return it."""
    shadow = served.model_copy(update={"version": "2"})
    register(settings, served, shadow)
    route = Serving(versions={"1": served.key, "2": shadow.key}, default="1", shadow="2")
    with connect(settings.redis_url) as redis:
        keys = RegistryKeys(settings.key_prefix)
        redis.hset(keys.served, served.name, route.model_dump_json())
        redis.incr(keys.changes)
    return shadow


def register_drift(settings: Settings, model: ModelSpec, rows: int) -> None:
    """Have a model whose reference holds three classes alike answer `rows` of class 1 alone."""
    reference = Reference.of({"prediction": class_histogram(np.arange(600) % 3, 3)})
    counted = reference.signals["prediction"].counted(np.ones(rows, np.int64))
    with connect(settings.redis_url) as redis:
        Registry(redis, settings.key_prefix).keep_reference(model.key, reference.encode())
        counts = DriftCounts(redis, settings.key_prefix)
        counts.add(model.key, reference, rows, {"prediction": counted})
