"""An ensemble run by a thread of the test, whose steps the test itself claims and answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
from fake_backend import answered
from registered import register
from waiting import wait_until

from shared.errors import FerryError
from shared.messages import InferRequest, InferResult, Tensor
from shared.model_spec import EnsembleStep, ModelSpec, TensorSpec
from shared.request_queue.api_end import PendingRequest, RequestQueue
from shared.request_queue.claimed import Claimed
from shared.request_queue.keys import QueueKeys
from shared.request_queue.limits import Batching, Limits
from shared.request_queue.worker_end import WorkQueue
from shared.settings import Settings
from shared.ticket import TICKET
from shared.wire.client import connect
from shared.wire.wire import open_wire
from worker.devices import Placement
from worker.ensembles.process import run_ensemble
from worker.job import InstanceJob
from worker.meter import Meter

TIMEOUT_SECONDS = 120.0
"""How long a client waits: far longer than any wait of a test, which it must not end."""


def model(name: str, source: str = "x", target: str = "y", **fields: Any) -> ModelSpec:
    """Describe a model of one FP32 input and one output of two columns, batches of 8."""
    described = {
        "name": name, "version": "1", "platform": "fake", "max_batch_size": 8,
        "inputs": (TensorSpec(name=source, datatype="FP32", dims=(2,)),),
        "outputs": (TensorSpec(name=target, datatype="FP32", dims=(2,)),),
    }  # fmt: skip
    return ModelSpec(**(described | fields))


def chain(*names: str, **fields: Any) -> ModelSpec:
    """Describe the ensemble `chain`: its `in` goes through all these models to its `out`."""
    ends = ["in", *(f"after_{name}" for name in names[:-1]), "out"]
    steps = tuple(
        EnsembleStep(model=name, input_map={"x": ends[index]}, output_map={"y": ends[index + 1]})
        for index, name in enumerate(names)
    )
    return model("chain", "in", "out", steps=steps, platform="ensemble", **fields)


class HandDriven:
    """An ensemble that runs, its client, and its steps."""

    def __init__(self, settings: Settings, ensemble: ModelSpec, models: list[ModelSpec]) -> None:
        self.redis = connect(settings.redis_url)
        self.ensemble = ensemble
        self.meter = Meter()
        self._settings = settings
        self._models = models
        self.keys: dict[str, QueueKeys] = {}
        self._ends: dict[str, WorkQueue] = {}
        for spec in (ensemble, *models):
            self._open(spec)
        self.queue = RequestQueue(self.redis, self.keys[ensemble.name], Limits())

    def replace(self, old: ModelSpec, new: ModelSpec) -> None:
        """Have a model's place taken by another version, which takes no requests for `old`."""
        self.redis.set(self.keys[old.name].closed, "1", px=60_000)
        register(self._settings, new).remove_model(old.key)
        self._open(new)

    def hang_up(self) -> None:
        """Have Redis close every connection; those of the test are opened anew."""
        for kind in ("normal", "pubsub"):
            self.redis.client_kill_filter(_type=kind, skipme=True)
        for spec in (self.ensemble, *self._models):
            self._open(spec)

    def _open(self, spec: ModelSpec) -> None:
        keys = QueueKeys(self._settings.key_prefix, spec.key, spec.levels)
        self.keys[spec.name] = keys
        self._ends[spec.name] = WorkQueue(
            open_wire(self.redis), keys, "by-hand", result_ttl_seconds=60.0,
            batching=Batching.of(spec),
        )  # fmt: skip

    def push(self, value: float, seconds: float = TIMEOUT_SECONDS, **fields: Any) -> PendingRequest:
        """Ask the ensemble for a row of `value`s."""
        tensor = Tensor.of("in", np.full((1, 2), value, np.float32))
        request = InferRequest(self.queue.new_id(), 1, (tensor,), (), seconds)
        return self.queue.push(request._replace(**fields))

    def claim(self, name: str) -> Claimed:
        """Return one request of a step's model, once there is one."""
        found: list[Claimed] = []
        wait_until(lambda: found.extend(self._ends[name].claim(1, 0.0)) or found, 10, name)
        return found[0]

    def answer(self, name: str, item: Claimed, *outputs: Tensor) -> None:
        """Answer a step's request, with 2x unless something else is given."""
        x = item.request().inputs[0].array()
        outputs = outputs or (Tensor.of("y", x * np.float32(2)),)
        self._publish(name, item, InferResult(outputs))

    def refuse(self, name: str, item: Claimed, error: FerryError) -> None:
        """Answer a step's request with an error."""
        self._publish(name, item, InferResult(error=error))

    def is_open(self, name: str, item: Claimed) -> bool:
        """Tell whether somebody still wants a step's answer."""
        return bool(self.redis.exists(self.keys[name].body + item.id))

    def depth(self, name: str) -> int:
        """Return how many requests wait for a model."""
        return sum(int(self.redis.llen(waiting)) for waiting in self.keys[name].lists)

    def held(self) -> int:
        """Return how many requests the ensemble's process has claimed and not answered."""
        return len(self.held_ids())

    def held_ids(self) -> list[str]:
        """Return which ones these are."""
        key = self.keys[self.ensemble.name].inflight + "scheduler"
        return [ticket[TICKET.size :].decode() for ticket in self.redis.lrange(key, 0, -1)]

    @staticmethod
    def value(item: Claimed) -> float:
        """Return the first number that a step is asked about."""
        return float(item.request().inputs[0].array()[0, 0])

    def _publish(self, name: str, item: Claimed, result: InferResult) -> None:
        self._ends[name].publish([item], answered([item], [result.encode()]))


@contextmanager
def hand_driven(
    settings: Settings, ensemble: ModelSpec, *models: ModelSpec, register_models: bool = True
) -> Iterator[HandDriven]:
    """Run `ensemble` for as long as the block; its steps' models are registered and do nothing."""
    register(settings, ensemble, *(models if register_models else ()))
    driven, stopped = HandDriven(settings, ensemble, list(models)), Event()
    job = InstanceJob(
        "scheduler", ensemble, "ensemble", Path(), Placement("cpu"),
        settings.redis_url, settings.key_prefix, 60.0, settings.log_level,
    )  # fmt: skip
    thread = Thread(target=run_ensemble, args=(job, stopped.is_set, driven.meter))
    thread.start()
    try:
        yield driven
    finally:
        stopped.set()
        thread.join(timeout=30)
        driven.redis.close()
    assert not thread.is_alive()
