"""The process of one model instance: load, warm up, say ready, serve until told to stop."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing import parent_process
from multiprocessing.connection import Connection

import torch

from shared.bodies.worker_bodies import WorkerBodies
from shared.datatypes import Array
from shared.errors import BadModel, described, text_of
from shared.parent_death import die_with_parent_process
from shared.registry.log_settings import LogLevel
from worker.backends.base import Backend, why_on_cpu
from worker.backends.loading import load_file
from worker.backends.triton_requests import ask_others_by
from worker.ensembles.process import run_ensemble
from worker.instance.decoding.decoders import Decoders
from worker.instance.determinism import CHECKED, Make, padding_effect, unsteadiness
from worker.instance.each import answers_each
from worker.instance.execution.policy import Execution
from worker.instance.health.device_probe import (
    DeviceLost,
    Probe,
    device_probe,
    no_device,
    probe_of,
    sound,
)  # fmt: skip
from worker.instance.health.growth import Growth
from worker.instance.health.self_check import SelfCheck, self_check
from worker.instance.made_up import Guess, made_up, noise
from worker.instance.other_models import OtherModels
from worker.instance.out_of_memory import PiecewiseBackend
from worker.instance.outputs import fitted_outputs
from worker.instance.passes.allocator import keep_memory
from worker.instance.passes.serving import WarmBackend, WarmInstance, end_soon, serve
from worker.instance.tensor_adapter import backend_spec
from worker.instance.warmup import MadeUpPasses, run_samples, run_sizes, sample_rows, warm_up
from worker.job import DEVICE_IS_LOST, LOST, InstanceJob
from worker.logs import configure_logging, follow_level
from worker.meter import MAX_GUESS_BYTES, Meter
from worker.preflight import memory, own_device
from worker.repository.config.formats import BY_BACKEND
from worker.repository.config.parameters import own_threads
from worker.repository.verified import why_unverified
from worker.tracing import WorkerTracing

log = logging.getLogger(__name__)

TORCHS = CHECKED - {"onnxruntime"}


def run_instance(job: InstanceJob, reports: Connection, meter: Meter) -> None:
    """Run an instance: the body of a forked process, which ends when this returns.

    Sends `("ready", note)` or `("failed", reason)` to `reports`, and writes its progress into
    `meter`, which the supervisor reads. SIGTERM finishes the batch in hand; before the first batch
    it ends the process at once.
    """
    # Until a batch is in hand nothing needs finishing, and loading may take minutes.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Ctrl-C reaches the whole process group; only the supervisor decides when an instance ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    configure_logging(job.log_level, job.log_format)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a model's `print` fails no request
    log_level = LogLevel(job.log_level)
    follow_level(log_level, meter)
    job = replace(job, placement=own_device.take(job.placement))
    if job.backend == "python":
        ask_others_by(OtherModels(job).ask)
    tracing = WorkerTracing.of(job)
    decoders = Decoders.of(job)  # they come up while the model is loaded
    warm = None if job.spec.steps else _loaded(job, reports, meter)
    stopping, wakeup = _stopped_by_signal()
    growth = Growth(job.max_growth_bytes)
    reports.send(("ready", warm.note if warm else "", warm.device if warm else ""))

    def stop() -> bool:
        follow_level(log_level, meter)  # here because the loop asks for each batch, or each second
        if not stopping and (reason := growth.reason()):
            log.warning("%s: %s: %s, it leaves", job.spec.key, job.id, reason)
            reports.send((LOST, reason, []))
            stopping.append(1)
        return bool(stopping)

    if warm is None:
        run_ensemble(job, stop, meter, wakeup, tracing)
        return
    bodies = WorkerBodies.of(job.shared_body_bytes, job.body_urls, job.key_prefix)
    serve(WarmInstance(job, warm, meter, stop, wakeup, tracing, decoders, bodies), reports)


def _stopped_by_signal() -> tuple[list[int], int]:
    """Have SIGTERM leave something in the list, and in a descriptor that ends a wait for it."""
    stopping: list[int] = []
    # subtle: Python goes on waiting after a signal; what it writes here ends the wait. Plain
    # numbers, which nobody closes: signals come until the process has ended.
    wakeup, written = os.pipe()
    os.set_blocking(written, False)
    signal.set_wakeup_fd(written, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the model may have set its own
    return stopping, wakeup


def _loaded(job: InstanceJob, reports: Connection, meter: Meter) -> WarmBackend:
    """Return the warm backend; reports why there is none and ends the process."""
    try:
        return warm_backend(job, meter)
    except BaseException as error:  # a border: the supervisor reports it and tries again later
        said = text_of(error) if isinstance(error, Exception) else described(error)
        log.error("%s failed to load, the supervisor will retry: %s", job.spec.key, said)
        reports.send(("failed", f"failed to load '{job.spec.name}', {job.file}: {said}"))
        code = DEVICE_IS_LOST if isinstance(error, DeviceLost) else 1
        end_soon(code)
        raise SystemExit(code) from error


def warm_backend(
    job: InstanceJob, meter: Meter, loaded: Callable[[], None] = lambda: None
) -> WarmBackend:
    """Return the loaded model once it is warmed up and looked at; raises its own errors.

    Only the operator's samples may refuse it, and answers that break its contract whatever goes
    in. `loaded` is called behind the samples. Raises DeviceLost when its device fails on the way.
    """
    own_device.check(job.placement)
    free_bytes = memory.admit(job)
    probe = device_probe(job.placement.device)
    with sound(probe):
        own = _own_backend(job)
        probe = no_device if why_on_cpu(own) else probe_of(own, probe)
    execution = Execution.of(job.backend, job.spec, own)
    backend = execution.backend
    if job.spec.batched and not answers_each(backend):
        backend = PiecewiseBackend(backend, job.spec, meter)
    # subtle: as it will serve. A script that a Python model ran with gradients refuses to without.
    with sound(probe), torch.inference_mode():
        run_samples(job.spec, backend, job.warmup)
        loaded()
        warm = _warmed(job, backend, meter, probe, execution)
    meter.memory_bytes = memory.taken(free_bytes)
    return _placed(warm, job, why_on_cpu(own))


def _placed(warm: WarmBackend, job: InstanceJob, on_cpu: str) -> WarmBackend:
    """Return a warm backend with what is wrong with where it runs in front of its note."""
    where = job.placement.note or (on_cpu and f"runs on the CPU: {on_cpu}")
    if not where:
        return warm
    note = "; ".join(filter(None, [_noted(job, where), warm.note]))
    return warm._replace(note=note, device="cpu" if on_cpu else "")


def _warmed(
    job: InstanceJob, backend: Backend, meter: Meter, probe: Probe, execution: Execution
) -> WarmBackend:
    """Return a loaded model once it is warmed up with what is made up, and looked at."""
    pixels = frozenset({job.spec.image.input} if job.spec.image and not job.warmup else ())
    if job.cold:
        notes = [f"served cold: {job.cold}", execution.begin_unchecked()]
        health = _self_check(job, backend, pixels, probe, meter)
        return WarmBackend(backend, health, _noted(job, *filter(None, notes)))
    passes = MadeUpPasses(job.spec, backend, pixels, meter, probe)
    cold, makes = _warm(job, passes, meter)
    unsteady = unsteadiness(job.spec, job.backend, passes, makes)
    padded = "" if answers_each(backend) else padding_effect(job.spec, passes, makes)
    unchecked = execution.begin(passes, makes)
    passes.end()
    notes = [cold and f"served cold: {cold}", unsteady, padded, unchecked]
    health = _self_check(job, backend, pixels, probe, meter, makes)
    note = _noted(job, *filter(None, notes))
    return WarmBackend(backend, health, note, one_length=bool(padded))


def _self_check(
    job: InstanceJob,
    backend: Backend,
    pixels: frozenset[str],
    probe: Probe,
    meter: Meter,
    makes: Sequence[Make] = (),
) -> SelfCheck:
    """Return what an instance knows of itself by the first sample, or by the last of `makes`."""
    make: Callable[[], Mapping[str, Array]] | None = partial(makes[-1], 1) if makes else None
    if job.warmup:
        make = partial(sample_rows, job.warmup[0], job.spec, job.warmup[0].rows)

    def ask(inputs: Mapping[str, Array]) -> object:
        rows = len(next(iter(inputs.values())))
        return fitted_outputs(backend.forward(inputs, pixels), job.spec, rows)

    return self_check(job.spec, ask, make, probe, meter, is_torchs=job.backend in TORCHS)


def _warm(job: InstanceJob, passes: MadeUpPasses, meter: Meter) -> tuple[str, list[Make]]:
    """Run every batch size; return why not all, and what makes rows that the model takes.

    Where the operator gave samples, those are all that it is asked. Raises BadModel of a model that
    refuses what it took in an earlier process: something is broken that it needs.
    """
    if job.warmup:
        samples: list[Make] = [partial(sample_rows, sample, job.spec) for sample in job.warmup]
        return run_sizes(job.spec, passes, samples[0]), samples
    before = Guess.decode(meter.taken_guess) if meter.taken_guess else None
    warmed = warm_up(job.spec, passes, before)
    if warmed.guess is None and before:
        raise BadModel(f"it took what is made up to warm it before, {warmed.cold}")
    if warmed.guess is None:
        return warmed.cold, []
    taken = warmed.guess.encode()
    meter.taken_guess = taken if len(taken) <= MAX_GUESS_BYTES else b""
    return warmed.cold, [
        partial(noise, job.spec, warmed.guess),
        partial(made_up, job.spec, warmed.guess),
    ]


def _noted(job: InstanceJob, *notes: str) -> str:
    """Log what was found and does not keep the model from being served; return it as one."""
    for note in notes:
        log.warning("%s: %s", job.spec.key, note)
    return "; ".join(notes)


def load_backend(job: InstanceJob) -> Backend:
    """Load the model's file with its backend; raises the framework's own errors."""
    execution = Execution.of(job.backend, job.spec, _own_backend(job))
    execution.begin_unchecked()
    return execution.backend


def _own_backend(job: InstanceJob) -> Backend:
    if job.require_verified and (why := why_unverified(job.spec, job.file.parent)):
        raise BadModel(why)
    triton_backend = BY_BACKEND[job.backend].triton_backend
    threads = own_threads(triton_backend, job.spec.parameters) or job.placement.threads
    placement = replace(job.placement, threads=threads)
    torch.set_num_threads(threads)
    if placement.device == "cpu" and triton_backend != "onnxruntime":
        # ONNX Runtime has an arena of its own, and gives back what it wants to
        keep_memory()
    spec = backend_spec(job.spec)
    return load_file(job.backend, spec, job.file, placement, trusted=job.trusted)


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, also of SIGKILL.

    So the forkserver dies with the supervisor, and the instances with the forkserver. By itself
    it would outlive its children, to which multiprocessing lends the pipe that it watches.
    """
    die_with_parent_process()
    supervisor = parent_process()
    if supervisor is not None and not supervisor.is_alive():
        raise SystemExit(1)
