"""A model that is served by a thread of the test, with Ferry's own loop, and says what it ran."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from threading import Event, Thread
from time import sleep
from typing import Any

from fake_backend import FakeBackend, doubled, fake_spec
from registered import register

from shared.datatypes import Array
from shared.model_spec import ModelSpec
from shared.request_queue.keys import QueueKeys
from shared.request_queue.limits import Batching
from shared.request_queue.worker_end import WorkQueue
from shared.settings import Settings
from shared.wire.client import connect
from shared.wire.wire import open_wire
from worker.instance.batch import answer_batch
from worker.instance.loop import run
from worker.meter import Meter

Answer = Callable[[Mapping[str, Array]], dict[str, Array]]
POISON = -1.0
"""A row that the model raises on."""


class CountingModel:
    """Answers `y` = 2 `x`; `computed` are the first values of all rows that it ever computed.

    Or it says what `answer` does. Each pass takes `seconds`, and waits until `gate` is open.
    """

    def __init__(
        self, settings: Settings, spec: ModelSpec, seconds: float, answer: Answer = doubled
    ) -> None:
        self.spec = spec
        self.keys = QueueKeys.of(spec, settings.key_prefix)
        self.redis = connect(settings.redis_url)
        self.computed: list[float] = []
        self.passes = 0
        self.gate = Event()
        self.gate.set()
        self._seconds = seconds
        self._answer = answer

    def forward(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.passes += 1
        assert self.gate.wait(120)  # longer than any wait of a test
        sleep(self._seconds)
        self.computed += inputs["x"][:, 0].tolist()
        return self._answer(inputs)

    def count(self, what: str) -> int:
        """Return how many requests were `expired` or `cancelled`."""
        return int(self.redis.hget(self.keys.counts, what) or 0)

    def depth(self) -> int:
        """Return how many requests wait, on all levels."""
        return sum(int(self.redis.llen(queue)) for queue in self.keys.queues)

    def busy(self) -> bool:
        """Tell whether a batch is claimed and not yet published."""
        return bool(self.redis.exists(self.keys.inflight + "counting"))


@contextmanager
def counting_model(
    settings: Settings,
    *,
    seconds: float = 0.0,
    max_batch_size: int = 1,
    answer: Answer = doubled,
    **fields: Any,
) -> Iterator[CountingModel]:
    """Register and serve the model `fake`, whose spec has `fields`, for as long as the block."""
    spec = fake_spec(max_batch_size=max_batch_size).model_copy(update=fields)
    register(settings, spec)
    model, stopped = CountingModel(settings, spec, seconds, answer), Event()
    queue = WorkQueue(
        open_wire(model.redis), model.keys, "counting",
        result_ttl_seconds=60.0, batching=Batching.of(spec),
    )  # fmt: skip
    backend = FakeBackend(model.forward, poison=POISON)
    thread = Thread(
        target=run,
        args=(
            queue,
            partial(answer_batch, spec=spec, backend=backend, instance="counting"),
            stopped.is_set,
            Meter(),
        ),
        kwargs={"max_rows": spec.batch_rows, "max_delay_seconds": spec.max_queue_delay_seconds},
    )
    thread.start()
    try:
        yield model
    finally:
        stopped.set()
        model.gate.set()
        model.redis.rpush(model.keys.bell, "1")  # it need not wait out its second
        thread.join(timeout=30)
        model.redis.close()
    assert not thread.is_alive()


def tensor(value: float) -> dict[str, Any]:
    """Return the `/predict` body that asks for one row of `value`s."""
    return {"input_tensor": [[value, value]]}


def v2(value: float, **parameters: Any) -> dict[str, Any]:
    """Return the v2 body that asks for one row of `value`s."""
    inputs = [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [value, value]}]
    return {"inputs": inputs, "parameters": parameters}
