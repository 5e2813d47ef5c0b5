"""Starts one process per model instance, restarts dead ones, puts their work back.

The supervisor is the failure detector: the operating system tells it of a child's death at once.
It never loads a model and never touches a GPU; instances are forked from a forkserver that has
torch imported, so a replacement is there in well under a second.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from multiprocessing import connection, forkserver, get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path
from secrets import token_hex
from threading import Event, Thread

from redis.exceptions import RedisError

from shared.bodies.worker_bodies import WorkerBodies
from shared.errors import RedisUnavailable
from shared.registry.change_bell import ChangeBell
from shared.registry.desired_store import DesiredStore
from shared.registry.log_settings import LogLevel
from shared.registry.registry import Look, Registry
from shared.settings import Settings
from shared.wire.client import connect
from shared.wire.outage import RETRY_SECONDS, Outage
from worker.repository.models import ServedModel, model_names
from worker.supervisor.deployment import Deployment
from worker.supervisor.devices.device_watch import DeviceRegister, DeviceWatch
from worker.supervisor.instance_slot import InstanceSlot
from worker.supervisor.placement import Placer
from worker.supervisor.recovery import Recovery
from worker.supervisor.registration import BEAT_TERM, LOOKS_PER_HEARTBEAT, Registration
from worker.supervisor.rollout import BUSY_LOOK_SECONDS, IDLE_LOOK_SECONDS, Rollout
from worker.supervisor.start_guard import HUNG_SECONDS, StartGuard
from worker.supervisor.watch import Watch
from worker.supervisor.worker_metrics import serve_metrics

log = logging.getLogger(__name__)

DRAIN_TICK_SECONDS = 0.2
LAST_TRY_SECONDS = 4.0
"""So long after it has drained a supervisor begins to clean up anew, when Redis fails."""


class Supervisor:
    """All instances of one machine.

    It has one thread, which waits for processes to end or report and then runs a `_tick`:

        slot.reap                 sees who died, Redis or not
        Recovery.recover_noted    puts back their requests
        Registration.beat         each heartbeat: sign of life, models and instances in the registry
        _take_over                beside others twice as often: puts back what lost machines held
        Rollout.look              makes deployments, moves traffic, retires what is not wanted
        _serve                    starts, restarts or ends a deployment's instances

    A tick looks after those deployments of which something stirs or is due, `Watch.awake`; after
    all of them when what is wanted or what they did may have changed.

    What takes long is elsewhere: BackgroundPlanner's thread reads files, instances load models.
    """

    def __init__(self, settings: Settings) -> None:
        """Open nothing yet."""
        self.id = f"{socket.gethostname()}-{os.getpid()}-{token_hex(3)}"
        self._settings = settings
        self._client = connect(settings.redis_url, settings.key_prefix)
        self._registry = Registry(self._client, settings.key_prefix)
        self._registration = Registration(self.id, self._registry, settings.heartbeat_seconds)
        self._log_level = LogLevel(settings.log_level)
        self._context: ForkServerContext = get_context("forkserver")
        self._context.set_forkserver_preload(
            ["worker.instance.forkserver_preload", "worker.supervisor.instance_slot"]
        )
        self._can_fork = Event()
        self._bodies = WorkerBodies.of(
            settings.shared_body_bytes, settings.body_urls, settings.key_prefix
        )
        self._store = DesiredStore(self._client, settings.key_prefix)
        self._bell = ChangeBell(self._client, settings.key_prefix)
        self._starts = StartGuard(
            self._registration.renew, settings.heartbeat_seconds / LOOKS_PER_HEARTBEAT
        )
        self._devices = DeviceWatch(self._context, settings.gpus, self._starts)
        self._device_register = DeviceRegister(self.id, self._registry)
        self._rollout = Rollout(
            self.id, settings, self._store, self._make, lambda: self._devices.is_known
        )
        self._placer = Placer(
            self.id, settings, self._context, self._log_level, lambda: self._devices.report,
            self._starts,
        )  # fmt: skip
        if self._bodies is not None:
            self._placer.memory_token = self._bodies.memory_token
            self._placer.store_token = self._bodies.store_token
        self._has_cleaned_registry = False
        self._recovery = Recovery(self._client, self._registry, settings, self._bodies)
        self._outage = Outage(log)
        self._stopping = False
        self._has_new_devices = False
        self._watch = Watch()
        self._sees_all = True
        self._retry_at = 0.0
        self._looks_at = self._takes_over_at = 0.0
        self._stood_at = -1
        self._queues: list[str] | None = None
        self._has_company = False

    def run(self) -> None:
        """Serve the repository until SIGTERM or SIGINT, then drain."""
        # subtle: Python goes on waiting after a signal; what it writes here ends the wait.
        signalled, wakeup = connection.Pipe(duplex=False)
        os.set_blocking(wakeup.fileno(), False)
        signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        model_names(Path(self._settings.models))  # raises BadModel when there is no repository
        # subtle: by this thread, which lives as long as we do, for the forkserver dies with it.
        forkserver.ensure_running()
        Thread(target=self._await_forkserver, name="ferry-forkserver", daemon=True).start()
        serve_metrics(self._settings, lambda: self._slots, lambda: self._devices.report)
        while not self._stopping:
            self._tick()
            self._wait(signalled.fileno())
        self._bell.close()
        self._drain()

    def _await_forkserver(self) -> None:
        """Wait until it has imported what instances need: it takes seconds, and we are to beat."""
        try:
            first = self._context.Process(target=os.getpid)
            with self._starts:
                first.start()
            first.join(HUNG_SECONDS)
        except (OSError, EOFError) as error:  # each slot tries again, and says why it cannot
            log.warning("the forkserver does not start: %s", error)
        finally:
            self._can_fork.set()

    def _wait(self, signalled: int) -> None:
        """Wait until something is due, or a process has ended or reported."""
        others = {signalled} | self._devices.descriptors
        reads = time.monotonic() >= self._retry_at
        if reads and self._bell.descriptor is not None:
            others.add(self._bell.descriptor)
        self._watch.wait(others, self._pause(), reads=reads)

    def _on_signal(self, *_: object) -> None:
        self._stopping = True

    @property
    def _slots(self) -> list[InstanceSlot]:
        # Scrapes come by threads of their own, hence the copy.
        return [slot for each in list(self._rollout.deployments.values()) for slot in each.slots]

    def _make(self, new: ServedModel, models: list[ServedModel]) -> Deployment:
        """Return a new model's deployment, registered; raises BadModel and RedisUnavailable."""
        deployment = self._placer.place(new, models)
        self._registration.register([new])
        return deployment

    def _tick(self) -> None:
        """Look after what is awake, and Redis permitting, put back work, beat and take over."""
        awake = self._awake()
        # Outside of the border below: who died is seen, and noted, while Redis is away too.
        self._reap(awake)
        self._look_at_devices()
        if time.monotonic() < self._retry_at:
            self._sees_all = True
        else:
            awake = self._ask(awake)
        self._watch.follow(each for each in awake if each.key in self._rollout.deployments)

    def _awake(self) -> list[Deployment]:
        return list(self._rollout.deployments.values()) if self._sees_all else self._watch.awake()

    def _reap(self, deployments: list[Deployment]) -> None:
        for deployment in deployments:
            for slot in deployment.slots if not deployment.leaving else ():
                process = slot.process
                has_ended = process is not None and process.sentinel in self._watch.stirred
                dead = slot.reap(self._settings.max_batch_seconds, has_ended=has_ended)
                if dead:
                    self._recovery.note(dead, deployment.key, slot.loss)
                    self._rollout.look_now()

    def _ask(self, awake: list[Deployment]) -> list[Deployment]:
        """Do all that Redis is asked for; return the deployments that are looked after."""
        try:
            self._recovery.recover_noted()  # first: its requests wait for nothing but this
            self._listen()
            # subtle: an instance may only be recorded while its supervisor is known to live.
            if time.monotonic() >= self._registration.next_beat:
                self._beat()
            elif time.monotonic() >= self._looks_at:
                self._follow(self._registry.look())
            self._register_devices()
            rings = self._bell.descriptor is not None
            # It makes deployments, whose slots are filled here below.
            self._sees_all |= self._rollout.look(rings=rings)
            awake = self._awake() if self._sees_all else awake
            for deployment in awake:
                self._serve(deployment)
            # Not before: what is not deployed yet may be of a model that is still being read.
            if self._rollout.has_read_all and not self._has_cleaned_registry:
                self._registration.clean(self._rollout.deployments.keys())
                self._has_cleaned_registry = True
        except (RedisUnavailable, RedisError) as error:
            pause = self._outage.note(error, "the supervisor tries again")
            self._retry_at = time.monotonic() + pause
            self._registration.fill_again()
            # subtle: after an outage all signs of life have run out; who lives beats again first.
            self._takes_over_at = time.monotonic() + BEAT_TERM * self._settings.heartbeat_seconds
            self._sees_all = True
        else:
            self._outage.end()
            if self._sees_all:
                self._sees_all, self._queues = False, None
        return awake

    def _look_at_devices(self) -> None:
        if not self._can_fork.is_set() or not self._devices.follow(self._watch.stirred):
            return
        self._has_new_devices = self._sees_all = True
        self._rollout.look_now()
        if self._devices.has_others:
            self._rollout.plan_failed_again()
            stay = [each for each in self._rollout.deployments.values() if not each.retired_at]
            for deployment in stay:
                self._placer.place_again(deployment, [each.model for each in stay])

    def _register_devices(self) -> None:
        if self._has_new_devices:
            self._device_register.write(self._devices.report)
            self._has_new_devices = False

    def _listen(self) -> None:
        """Look at once when a change rang, and have the next one ring."""
        if self._bell.descriptor in self._watch.stirred:
            self._bell.read()
            self._looks_at = 0.0
        self._bell.listen()

    def _serve(self, deployment: Deployment) -> None:
        """Start and restart a version's instances, or have them leave when its time is up."""
        if deployment.is_due and self._can_leave(deployment):
            log.info("%s: leaving", deployment.key)
            deployment.leave(self._settings.max_batch_seconds)
            # Not behind its processes' end: who names it is refused by its queue from here on.
            self._unregister(deployment.key)
            self._rollout.look_now()
        if deployment.leaving:
            self._end(deployment)
            return
        if self._rollout.must_wait(deployment) and deployment.is_empty:
            deployment.start_after(BUSY_LOOK_SECONDS)
        for slot in deployment.slots:
            self._look_after(slot)

    def _end(self, deployment: Deployment) -> None:
        """Stop a version's instances, and forget it once the last one is gone."""
        for slot in deployment.slots:
            slot.read_reports()  # unread, they would end every wait of `run` at once
        killed = deployment.stop()
        if not deployment.is_empty:
            return
        for slot in deployment.slots:
            self._recovery.recover(slot.instance_id, deployment.key, crashed=killed)
        self._unregister(deployment.key)
        self._rollout.forget(deployment)
        self._rollout.look_now()
        self._watch.forget({deployment})
        self._placer.ledger.forget(deployment.key)

    def _unregister(self, key: str) -> None:
        """Take a version out of the registry, unless requests go to it on another machine."""
        if not self._rollout.is_served(key):
            self._registry.remove_model(key)

    def _can_leave(self, deployment: Deployment) -> bool:
        """Tell whether nothing is lost when a version's instances leave here.

        Others may serve it. Else no request may come any more, and none may wait or run.
        """
        records, _ = self._registry.instances()
        instances = [record.id for record in records if record.model_key == deployment.key]
        found = self._store.close(deployment.key, deployment.model.spec.levels, instances)
        if found == "served":
            return self._rollout.is_ready_elsewhere(deployment.key)
        return found == "closed"

    def _look_after(self, slot: InstanceSlot) -> None:
        stirred = slot.reports is not None and slot.reports.fileno() in self._watch.stirred
        changed = stirred and slot.read_reports()
        if slot.process is None and time.monotonic() >= slot.start_at:
            before = slot.instance_id
            slot.start()
            if slot.instance_id != before:  # else its record says why none is started
                self._recovery.note(before, slot.model.spec.key)  # its last record goes too
            changed = True
        if changed:
            self._rollout.look_now()
        if changed or slot.recorded is None:
            self._registration.record(slot)

    def _beat(self) -> None:
        """Renew our sign of life; leave devices that are bad, and instances that fail."""
        deployments, checks = self._rollout.deployments, self._registration.checks
        moves = self._placer.meters.has_moved() or not self._placer.ledger.is_clean
        if self._queues is None:
            stay = [key for key, each in deployments.items() if not each.retired_at]
            self._queues = self._store.closed_keys(stay)
        look = self._registration.beat(deployments.values(), self._queues, has_moved=moves)
        if checks:
            self._recovery.ring_for_what_waits(each.model.spec for each in deployments.values())
            self._stood_at = -1
            if self._bodies is not None:
                self._bodies.reap()
        self._has_new_devices |= self._registration.has_filled and self._devices.is_known
        if look.found_count:  # in the rare case that one closed meanwhile
            for key, each in deployments.items():
                if not each.retired_at:
                    self._store.open(key)
        if moves:
            self._sees_all = True
            for slot in self._slots:
                slot.leave_device()
            for deployment in deployments.values():
                deployment.replace_failing()
        self._follow(look)

    def _follow(self, look: Look) -> None:
        """Log as was set; look at what changed, and at the others when one may be gone."""
        before = self._log_level.number, self._log_level.iso_times
        self._log_level.follow(look.log)
        if (self._log_level.number, self._log_level.iso_times) != before:
            for slot in self._slots:
                slot.log_as(self._log_level)
        if look.changes < self._stood_at:  # Redis came back empty, so soon that nobody saw it go
            self._registration.fill_again()
        # fast: an idle supervisor wakes once for both, and asks once.
        self._rollout.look_now(look.changes)
        now, pause = time.monotonic(), self._settings.heartbeat_seconds / LOOKS_PER_HEARTBEAT
        if now >= self._takes_over_at and (look.misses or look.changes != self._stood_at):
            self._take_over()
        self._looks_at = now + (pause if self._has_company else IDLE_LOOK_SECONDS)

    def _take_over(self) -> None:
        """Put back the work of supervisors that are gone."""
        standing = self._registry.standing()
        self._stood_at = standing.changes
        if self.id not in standing.alive:
            self._registration.fill_again()
        alive = standing.alive | {self.id}
        self._has_company = len(alive) > 1
        self._recovery.take_over(standing.records, alive)
        for name in sorted(standing.reported - alive):
            self._store.drop_report(name)

    def _pause(self) -> float:
        """Return how long nothing is due: no beat, takeover, restart or look at the store."""
        now = time.monotonic()
        due = [self._registration.next_beat, self._looks_at, self._rollout.next_look]
        due += [self._devices.due_at] if self._can_fork.is_set() else []
        due.append(self._watch.due_at)
        return max(0.01, max(min(due), self._retry_at) - now)

    def _drain(self) -> None:
        """Stop every instance after its batch, then leave the registry.

        One that is just being forked does not hear SIGTERM yet, so it is sent again; and we still
        beat, or others would take over what is being finished here.
        """
        log.info("stopping %d instances", len(self._slots))
        self._devices.stop()
        deadline = time.monotonic() + self._settings.max_batch_seconds
        overdue = False
        while running := [slot for slot in self._slots if slot.process]:
            overdue = time.monotonic() >= deadline
            for slot in running:
                slot.stop(kill=overdue)
            self._registration.beat_alone()
            sentinels = [slot.process.sentinel for slot in running if slot.process]
            connection.wait(sentinels, timeout=DRAIN_TICK_SECONDS if sentinels else 0)
        self._leave(crashed=overdue)
        log.info("stopped")
        if self._placer.ledger.has_stuck:
            os._exit(0)  # our own exit handlers would wait for it for ever

    def _leave(self, *, crashed: bool) -> None:
        """Put back what is left, and leave the registry; a connection may have been closed since.

        Each step may be done twice, and a new connection is opened by the next try.
        """
        until = time.monotonic() + LAST_TRY_SECONDS
        while True:
            try:
                self._recovery.recover_noted()
                for slot in self._slots:
                    self._recovery.recover(slot.instance_id, slot.model.spec.key, crashed=crashed)
                self._store.drop_report(self.id)
                self._registry.stop_beating(self.id)
            except (RedisUnavailable, RedisError) as error:
                if time.monotonic() < until:
                    time.sleep(RETRY_SECONDS)
                    continue
                log.warning("Redis fails at the end, another supervisor will clean up: %s", error)
            return
