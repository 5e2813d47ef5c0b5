"""An instance that is warm serves: its queue, its answers, and its end, with one lane or two."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection
from threading import Lock, Thread
from typing import NamedTuple, NoReturn, TypeVar

import torch
from redis.exceptions import RedisError

from shared.bodies.worker_bodies import WorkerBodies
from shared.errors import described
from shared.messages import Tensor
from shared.request_queue.claimed import Claimed, EncodedResults
from shared.request_queue.keys import QueueKeys, lanes_of
from shared.request_queue.limits import Batching
from shared.request_queue.worker_end import WorkQueue
from shared.wire.client import connect
from shared.wire.wire import open_wire
from worker.backends.base import Backend, close
from worker.instance.batch import answer_batch
from worker.instance.batch_parts import ALONE, DecodedRequest, DeviceTurn, Offer
from worker.instance.decoding.decoders import Decoders
from worker.instance.each import answers_each
from worker.instance.health.self_check import InstanceLost, SelfCheck
from worker.instance.loop import run
from worker.instance.monitoring.monitor import monitored
from worker.instance.passes.allocator import share_memory
from worker.instance.passes.costs import PassCosts, Sharing
from worker.instance.passes.lanes import MAIN, SECOND, Lane, LaneQueue, SharedDevice
from worker.job import LOST, MAX_SUSPECTS, InstanceJob
from worker.meter import Meter
from worker.repository.config.parameters import pipeline_depth
from worker.tracing import WorkerTracing

log = logging.getLogger(__name__)

AnyQueue = TypeVar("AnyQueue", bound=WorkQueue)

LEAVE_SECONDS = 1.0
"""Given to threads and processes that a model left behind."""
LANE_LEAVE_SECONDS = 2.0
"""Given to the second lane when the instance is lost: to put back, or hand out, what it has."""
SWITCH_SECONDS = 0.0005
"""fast: who comes back from the device waits so long for the other lane's Python, not 5 ms."""


class WarmBackend(NamedTuple):
    """A loaded model; `note` says what is wrong with it that does not keep it from being served.

    With `one_length` its requests do not share a pass with longer ones. `device` is where it runs
    though it was placed elsewhere, empty where it was not; `health` looks at it later.
    """

    backend: Backend
    health: SelfCheck
    note: str = ""
    one_length: bool = False
    device: str = ""


class WarmInstance(NamedTuple):
    """What an instance serves with: its order, its model, and what it is told and tells."""

    job: InstanceJob
    warm: WarmBackend
    meter: Meter
    stop: Callable[[], bool]
    wakeup: int | None
    tracing: WorkerTracing | None
    decoders: Decoders | None = None
    bodies: WorkerBodies | None = None


class _Lane(NamedTuple):
    queue: WorkQueue
    answer: Callable[[list[Claimed]], EncodedResults]
    meter: Meter | Lane

    def run(self, job: InstanceJob, stop: Callable[[], bool]) -> None:
        run(
            self.queue, self.answer, stop, self.meter, max_rows=job.spec.batch_rows,
            max_delay_seconds=job.spec.max_queue_delay_seconds,
        )  # fmt: skip


def serve(serving: WarmInstance, reports: Connection) -> None:
    """Serve until told to stop; the process ends at once when the instance is lost."""
    job = serving.job
    with monitored(job) as offer, torch.inference_mode():  # fast: once, not for every batch
        run_lanes(serving, offer, reports)
    try:
        close(serving.warm.backend)
    except BaseException as error:  # a border: the model's own code; everything is answered by now
        said = described(error)
        log.error("%s raises when it is closed, the instance ends: %s", job.spec.key, said)
    if serving.tracing:
        serving.tracing.close()
    end_soon(0)


def run_lanes(serving: WarmInstance, offer: Offer | None, reports: Connection) -> None:
    """Answer batches until told to stop, by as many lanes as the model's config says."""
    if pipeline_depth(serving.job.spec.parameters) > 1:
        _run_two_lanes(serving, offer, reports)
    else:
        _run_one_lane(serving, offer, reports)


def _run_one_lane(serving: WarmInstance, offer: Offer | None, reports: Connection) -> None:
    queue = _queue(WorkQueue, serving, serving.tracing)
    queue.wakeup = serving.wakeup
    answer = _answer(serving, offer, ALONE, _sharing(serving), serving.tracing)
    try:
        _Lane(queue, answer, serving.meter).run(serving.job, serving.stop)
    except InstanceLost as lost:
        _end_lost(serving.job, queue, lost, reports)


def _run_two_lanes(serving: WarmInstance, offer: Offer | None, reports: Connection) -> None:
    """Serve with a second thread, whose batch is staged while the main one's is computed."""
    sys.setswitchinterval(SWITCH_SECONDS)
    share_memory()
    device, lost = SharedDevice(serving.meter), list[tuple[WorkQueue, BaseException]]()
    main, second = _lanes(serving, device, _one_at_a_time(offer))

    def run_lane(lane: _Lane, stop: Callable[[], bool]) -> None:
        try:
            with torch.inference_mode():  # which is each thread's own
                lane.run(serving.job, stop)
        except BaseException as error:  # a border: the other lane ends first, then it is raised
            lost.append((lane.queue, error))
        finally:
            device.close()

    thread = Thread(
        target=run_lane, args=(second, lambda: device.is_closed), name="ferry-lane", daemon=True
    )
    thread.start()
    run_lane(main, lambda: serving.stop() or device.is_closed)
    thread.join(LANE_LEAVE_SECONDS if lost else None)
    for queue, error in lost:
        if isinstance(error, InstanceLost):
            _end_lost(serving.job, queue, error, reports)
        raise error


def _lanes(serving: WarmInstance, device: SharedDevice, offer: Offer | None) -> list[_Lane]:
    job, tracing, sharing = serving.job, serving.tracing, _sharing(serving)
    seconds = WorkerTracing(tracing.tracer, job.spec, job.id) if tracing else None
    lanes = []
    for number, spans in ((MAIN, tracing), (SECOND, seconds)):
        queue = _queue(LaneQueue, serving, spans, number)
        queue.lane = lane = Lane(device, number, queue.has_idle_peer)
        lanes.append(_Lane(queue, _answer(serving, offer, lane, sharing, spans), lane))
    lanes[MAIN].queue.wakeup = serving.wakeup
    return lanes


def _one_at_a_time(offer: Offer | None) -> Offer | None:
    """Return `offer` for two threads."""
    if offer is None:
        return None
    offered, lock = offer, Lock()

    def offer_alone(
        requests: Sequence[DecodedRequest], outputs: Mapping[str, Sequence[Tensor]]
    ) -> None:
        with lock:
            offered(requests, outputs)

    return offer_alone


def _queue(
    kind: type[AnyQueue], serving: WarmInstance, tracing: WorkerTracing | None, lane: int = MAIN
) -> AnyQueue:
    """Return an end of the model's queue, which claims by a name of the lane's own."""
    job = serving.job
    client = connect(job.redis_url, job.key_prefix)
    queue = kind(
        tracing.wire(client) if tracing else open_wire(client),
        QueueKeys.of(job.spec, job.key_prefix),
        lanes_of(job.id)[lane],
        result_ttl_seconds=job.result_ttl_seconds,
        batching=Batching.of(job.spec),
        cache=job.limits.cache,
    )
    queue.bodies = serving.bodies
    return queue


def _answer(
    serving: WarmInstance, offer: Offer | None, turn: DeviceTurn, sharing: Sharing,
    tracing: WorkerTracing | None,
) -> Callable[[list[Claimed]], EncodedResults]:  # fmt: skip
    job, warm = serving.job, serving.warm
    answer: Callable[[list[Claimed]], EncodedResults] = partial(
        answer_batch, spec=job.spec, backend=warm.backend, instance=job.id, sharing=sharing,
        health=warm.health, offer=offer, turn=turn, decoders=serving.decoders,
        bodies=serving.bodies,
    )  # fmt: skip
    return tracing.traced(answer) if tracing else answer


def _sharing(serving: WarmInstance) -> Sharing:
    """Return which requests of a batch share a pass; one that sees each by itself has them all."""
    warm = serving.warm
    has_lengths = serving.job.spec.ragged_names and not answers_each(warm.backend)
    return Sharing(warm.one_length, PassCosts() if has_lengths else None)


def _end_lost(
    job: InstanceJob, queue: WorkQueue, lost: InstanceLost, reports: Connection
) -> NoReturn:
    """Put back what the instance holds, say why, and end at once: nothing here works any more."""
    log.error("%s: %s; its requests go back, and %s ends", job.spec.key, lost.reason, job.id)
    try:
        queue.put_back_lost(lost.suspects, lost.reason)
    except RedisError as error:
        log.warning("Redis fails, the supervisor will put them back: %s", error)
    suspects = sorted(lost.suspects) if len(lost.suspects) <= MAX_SUSPECTS else []
    reports.send((LOST, lost.reason, suspects))
    os._exit(lost.code)  # not by its exit handlers: they would ask the device, and may never end


def end_soon(code: int) -> None:
    """End the process in a moment, should what the model left behind keep it from ending itself.

    Python waits for all threads and processes that are no daemons.
    """

    def end() -> None:
        log.warning("the model left threads or processes behind, they are ended")
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(code)

    timer = threading.Timer(LEAVE_SECONDS, end)
    timer.daemon = True
    timer.start()
