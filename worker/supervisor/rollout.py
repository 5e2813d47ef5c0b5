"""Follows the desired state: starts versions beside those that serve, moves traffic, retires.

A version is started and warmed beside the old one; when it is ready on every machine that wants it,
requests go to it; the old one stays warm for a while, then stops once it has no work left.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from shared.errors import BadModel, RedisUnavailable
from shared.registry.desired_state import (
    Desired,
    ModelReport,
    SupervisorReport,
    VersionReport,
)
from shared.registry.desired_store import Content, ControlState, DesiredStore
from shared.settings import Settings
from worker.repository.models import ServedModel
from worker.supervisor.background_planner import BackgroundPlanner
from worker.supervisor.deployment import Deployment
from worker.supervisor.first_answers import FirstAnswers
from worker.supervisor.planner import Plan, PlannedVersion
from worker.supervisor.traffic import CanaryPlan, OthersFiles, Traffic

log = logging.getLogger(__name__)

BUSY_LOOK_SECONDS = 0.1
IDLE_LOOK_SECONDS = 2.5
"""Between two looks at the store while nothing goes on here; a change rings, or a beat sees it."""
REPORT_SECONDS = 30.0
"""Time between two comparisons of our report with the last one, besides those at every change."""
GRACE_SECONDS = 1.5
"""Time that a version which takes no more requests stays: API processes may look late.

Longer than that nothing breaks: a late request is refused atomically and sent to the new version.
"""
MakeDeployment = Callable[[ServedModel, list[ServedModel]], Deployment]
"""Returns a new model's deployment among all; raises BadModel when the machine has no place."""


class Rollout:
    """The deployments of one supervisor, and how far each is. `look` is called with every tick.

    The states of one content of a version on this machine, and which step leads to the next:

        desired    what operators asked for, or the repository's files
           |       BackgroundPlanner reads it: a Plan          or not: failed, what serves goes on
        planned
           |       _deploy finds room for its instances        or not: failed, what serves goes on
        loading    Supervisor starts them; one that fails is tried again
           |       enough of them are ready, and the others had their chance
        ready
           |       Traffic: it is ready on every machine that wants it
        serving    `ControlState.served` names it           <------+
           |       _retire: not wanted here, no requests           |  _retire: wanted, or served,
        retired    stands by, as ready as before            -------+           again
           |       Supervisor: its time is up, and its queue is empty and closed
        leaving    its instances finish their batch and end
           |       forget
        gone
    """

    def __init__(
        self,
        supervisor: str,
        settings: Settings,
        store: DesiredStore,
        make: MakeDeployment,
        may_deploy: Callable[[], bool],
    ) -> None:
        """Read nothing yet; `make` is called from when on one `may_deploy`."""
        self._may_deploy = may_deploy
        self.deployments: dict[str, Deployment] = {}
        self._supervisor = supervisor
        self._settings = settings
        self._store = store
        self._make = make
        canary = CanaryPlan(settings.canary_percent, settings.canary_seconds)
        self._traffic = Traffic(supervisor, store, canary)
        self._first_answers = FirstAnswers(store)
        self._planner = BackgroundPlanner(settings)
        self._wanted_keys: dict[str, dict[str, str]] = {}
        self._contents: dict[str, Content] = {}
        self._logged_reasons: dict[str, list[str]] = {}
        self._others_files = OthersFiles()
        self._must_look_again = False
        self._last_report: SupervisorReport | None = None
        self._last_state = ControlState()
        self._has_read_all = self._has_kept_loaded = False
        self._seen_changes = -1
        self._read_changes: int | None = None
        self._next_look = self._next_report = self._next_poll = 0.0

    @property
    def has_read_all(self) -> bool:
        """Tell whether every model of the repository was read once."""
        return self._has_read_all

    @property
    def next_look(self) -> float:
        """Return when `look` has something to do, unless `look_now` comes before."""
        return self._next_look

    def look(self, *, rings: bool) -> bool:
        """Do what is due; raises RedisUnavailable. Changes are told by `look_now` if it `rings`.

        Tells whether deployments may have come, or may be wanted otherwise by now.
        """
        now = time.monotonic()
        # A plan that is there is taken at once: its versions may be what a request waits for.
        if now < self._next_look and not (self._planner.has_new and self._may_deploy()):
            return False
        follows = self._look(now)
        hurries = not rings or self._goes_on or self._planner.goes_on
        self._next_look = now + (BUSY_LOOK_SECONDS if hurries else IDLE_LOOK_SECONDS)
        if self._settings.model_control_mode == "poll":
            self._next_look = min(self._next_look, max(self._next_poll, now + BUSY_LOOK_SECONDS))
        return follows

    @property
    def _goes_on(self) -> bool:
        """Tell whether something is to be followed that no change of the store announces."""
        is_watching = self._first_answers.is_watching or self._traffic.has_canary
        return self._must_look_again or is_watching

    def _look(self, now: float) -> bool:
        changes = self._store.changes() if self._read_changes is None else self._read_changes
        self._read_changes = None
        if changes < self._seen_changes:  # the counter only grows, unless Redis lost it
            self._restore()
        # fast: nothing else is read while nothing changes, which is nearly always.
        follows = changes != self._seen_changes or self._is_busy(now) or self._goes_on
        if follows:
            try:
                self._follow(changes)
            except RedisUnavailable:
                self._must_look_again = True  # what changed may not have been acted upon
                raise
        if self._settings.model_control_mode == "poll":
            self._planner.poll(self._last_state.desired, is_due=now >= self._next_poll)
            if now >= self._next_poll:
                self._next_poll = now + self._settings.poll_seconds
        return follows

    def _follow(self, changes: int) -> None:
        """Act upon the desired, reported and served state, whose counter stands at `changes`."""
        state = self._read()
        if not self._has_kept_loaded:
            state = self._keep_loaded(state)
        self._planner.follow(state.desired, filter(self._wanted_keys.get, self._wanted_keys))
        # Noted before anything is done about it: what changes from here on is for the next look.
        self._seen_changes, self._must_look_again = changes, False
        self._apply_plans(state)
        self._report()
        state = self._read()  # with our own report, by which traffic goes
        if self._supervisor not in state.reports:
            self._last_report = None  # others took us for dead; said again at the next look
        if self._traffic.leads(state):
            self._must_look_again |= not self._traffic.promote(state)
            state = self._read()  # what no request goes to any more is about to retire
            self._first_answers.look(state)
        self._others_files.look(state, self.deployments.keys())
        self._retire(state)

    def _read(self) -> ControlState:
        """Return all that is known, and keep it: a Redis that lost it is told, at every read.

        What an operator asked for is kept here before a report says so, thus before the operator
        hears that it is done.
        """
        state = self._store.read()
        if state.changes < self._last_state.changes:
            self._restore()
            state = self._store.read()
        self._last_state = state
        return state

    def _keep_loaded(self, state: ControlState) -> ControlState:
        """In mode explicit, want what served when the last worker stopped, before anything else."""
        try:
            there = set(self._planner.planner.names())
        except (BadModel, OSError):
            return state  # the planner says why, and looks again
        if self._settings.model_control_mode == "explicit":
            for name in sorted(state.served.keys() & there):
                if state.desired.get(name, Desired()).loaded is None:
                    self._store.change(name, lambda now, _: now.model_copy(update={"loaded": True}))
        self._has_kept_loaded = True
        return self._read()

    def _restore(self) -> None:
        """Write desired, served and running versions into a Redis that came back empty."""
        log.warning("Redis forgot where requests go, telling it")
        self._store.restore(self._last_state)
        self._last_state = replace(self._last_state, changes=0)
        self._traffic.write_again()
        for deployment in self.deployments.values():
            revision = deployment.model.spec.revision
            self._store.restore_revision(deployment.content, revision, self._supervisor)
        self._last_report = None

    def _is_busy(self, now: float) -> bool:
        """Tell whether our report may be another one."""
        if self._planner.is_making:
            return True
        # fast: nothing changes our report that does not have us look now.
        if now < self._next_report:
            return False
        self._next_report = now + REPORT_SECONDS
        return self._model_reports() != self._last_report

    def _apply_plans(self, state: ControlState) -> None:
        """Deploy the versions of finished plans that are not there yet."""
        if not self._may_deploy():
            return  # they are kept, and looked at again
        plans = self._planner.new()
        new = [model for plan in plans for model in self._apply(plan, state)]
        kept = [d.model for d in self.deployments.values() if not d.retired_at]
        for model in new:
            self._deploy(model, kept + new)
        self._planner.acknowledge(plans)  # only now: Redis may have failed on the way
        if plans:
            self._must_look_again = True  # something else may be desired since they were begun

    def _apply(self, plan: Plan, state: ControlState) -> list[ServedModel]:
        """Take over a plan's versions; return the models that are not deployed yet."""
        running = self._running_though_gone(plan)
        for version in running:
            del plan.failures[version]
        reasons = [reason for reason in (plan.reason, *plan.failures.values()) if reason]
        for reason in reasons:
            if reason not in self._logged_reasons.get(plan.name, ()):
                log.error("%s; what serves goes on", reason)
        self._logged_reasons[plan.name] = reasons
        if plan.reason:
            return []
        is_deployed = any(d.model.spec.name == plan.name for d in self.deployments.values())
        if not plan.exists and is_deployed and self._settings.model_control_mode != "poll":
            reason = f"failed to load '{plan.name}', its directory is gone; what serves goes on"
            self._planner.made[plan.name] = replace(plan, exists=True, reason=reason)
            return []
        wanted = plan.in_turn(state.desired.get(plan.name, Desired()))
        models = [self._with_revision(planned, state) for planned in wanted]
        keys = {model.spec.version: model.spec.key for model in models}
        self._wanted_keys[plan.name] = keys | running
        self._want_steps({step.model for model in models for step in model.spec.steps}, state)
        return [model for model in models if model.spec.key not in self.deployments]

    def must_wait(self, deployment: Deployment) -> bool:
        """Tell whether others of its model are to leave before it starts."""
        wanted = self._wanted_keys.get(deployment.model.spec.name, {})
        return deployment.must_wait(self.deployments.values(), set(wanted.values()))

    def _running_though_gone(self, plan: Plan) -> dict[str, str]:
        """Return the contents of versions that are named and loaded, but without a directory now.

        As with all that is loaded: when its files go, it serves on.
        """
        found = {
            deployment.model.spec.version: deployment.key
            for deployment in self.deployments.values()
            if deployment.model.spec.name == plan.name and deployment.report.state == "ready"
        }
        return {version: key for version, key in found.items() if version in plan.gone}

    def _want_steps(self, names: set[str], state: ControlState) -> None:
        """Desire the models of an ensemble's steps too, as Triton does in mode explicit."""
        for name in names:
            if not self._planner.planner.is_wanted(name, state.desired.get(name, Desired())):
                self._store.change(name, lambda now, _: now.model_copy(update={"loaded": True}))

    def _with_revision(self, planned: PlannedVersion, state: ControlState) -> ServedModel:
        """Number a version's content: anew if it replaces other content that runs somewhere."""
        spec = planned.model.spec
        ours = {(d.model.spec.name, d.model.spec.version) for d in self.deployments.values()}
        running = {key for report in state.reports.values() for key in report.running}
        replaces = (spec.name, spec.version) in ours or spec.key in {
            key.partition("@")[0] for key in running
        }
        number = self._store.revision(planned.content, self._supervisor, replaces=replaces)
        model = planned.model.with_revision(number)
        self._contents[model.spec.key] = planned.content
        return model

    def _deploy(self, model: ServedModel, models: list[ServedModel]) -> None:
        """Start a version's instances, or note why this machine cannot."""
        try:
            deployment = self._make(model, models)
        except BadModel as error:
            log.error("%s; what serves goes on", error)
            self._planner.made[model.spec.name].failures[model.spec.version] = str(error)
            return
        deployment.content = self._contents[deployment.key]
        self._store.open(deployment.key)
        self.deployments[deployment.key] = deployment

    def _report(self) -> None:
        """Write this supervisor's report, if it changed."""
        self._has_read_all = self._has_read_all or not self._planner.is_making
        report = self._model_reports()
        if report != self._last_report:
            self._store.put_report(self._supervisor, report)
            self._last_report = report

    def look_now(self, changes: int | None = None) -> None:
        """Look at once: an instance has something to say, or has ended.

        Or the time has come, and the counter of changes was just read.
        """
        self._read_changes, self._next_look = changes, 0.0
        if changes is None:
            self._next_report = 0.0

    def plan_failed_again(self) -> None:
        """Plan anew what cannot be placed or read: there are other devices now."""
        for name, plan in self._planner.made.items():
            if plan.failures or plan.reason:
                self._planner.plan_again(name)

    def _model_reports(self) -> SupervisorReport:
        models = {name: self._model_report(plan) for name, plan in self._planner.made.items()}
        mode = self._settings.model_control_mode
        running = [d.key for d in self.deployments.values() if d.report.state == "ready"]
        standby = {d.key: d.standby_until for d in self.deployments.values() if d.retired_at}
        return SupervisorReport(
            mode=mode, complete=self._has_read_all, models=models, running=sorted(running),
            standby=standby,
        )  # fmt: skip

    def _model_report(self, plan: Plan) -> ModelReport:
        versions = {}
        for version, key in self._wanted_keys.get(plan.name, {}).items():
            if key in self.deployments:
                deployment = self.deployments[key]
                known = {
                    "stop_first": self.must_wait(deployment),
                    "digest": deployment.content.fingerprint,
                }
                versions[version] = deployment.report.model_copy(update=known)
        for version, reason in plan.failures.items():
            key = f"{plan.name}/{version}"
            versions[version] = VersionReport(key=key, state="failed", reason=reason)
        return ModelReport(
            generation=plan.generation, exists=plan.exists, versions=versions,
            reason=plan.reason, note=plan.note,
        )  # fmt: skip

    def _retire(self, state: ControlState) -> None:
        """Retire the deployments that are neither wanted here nor take requests."""
        wanted = {key for versions in self._wanted_keys.values() for key in versions.values()}
        serving = {key for each in state.served.values() for key in each.versions.values()}
        kept = wanted | (serving - self._ready_elsewhere(state))
        for deployment in self.deployments.values():
            if deployment.key not in kept:
                deployment.retired_at = deployment.retired_at or time.monotonic()
        for deployment in self.deployments.values():
            if deployment.key in kept:
                if deployment.retired_at:  # another supervisor may have closed it meanwhile
                    self._store.open(deployment.key)
                deployment.want()
            elif not deployment.leaving:
                deployment.retire_after(self._stand_by_seconds(deployment, state))

    def _ready_elsewhere(self, state: ControlState) -> set[str]:
        """Return the contents that other machines want and have ready."""
        return {
            version.key
            for supervisor, report in state.reports.items()
            for model in report.models.values()
            for version in model.versions.values()
            if supervisor != self._supervisor and version.state == "ready"
        }

    def _stand_by_seconds(self, deployment: Deployment, state: ControlState) -> float:
        """Return the seconds for which a replaced version stays ready to take over again.

        Nothing stands by for a model that was unloaded, and only what was ready.
        """
        name = deployment.model.spec.name
        if deployment.report.state != "ready":
            return 0.0
        waiting = [d for d in self.deployments.values() if d.model.spec.name == name]
        if name not in state.served or any(map(self.must_wait, waiting)):
            return GRACE_SECONDS
        newest = max(d.retired_at for d in self.deployments.values() if d.model.spec.name == name)
        if 0 < deployment.retired_at < newest:
            return GRACE_SECONDS
        return max(GRACE_SECONDS, self._settings.standby_seconds)

    def forget(self, deployment: Deployment) -> None:
        """Remove a deployment that has left; plan it anew if it is wanted again since."""
        del self.deployments[deployment.key]
        self._contents.pop(deployment.key, None)
        name = deployment.model.spec.name
        if deployment.key in self._wanted_keys.get(name, {}).values():
            self._planner.plan_again(name)

    def is_ready_elsewhere(self, key: str) -> bool:
        """Tell whether another machine wants this content now and has it ready."""
        return key in self._ready_elsewhere(self._store.read())

    def is_served(self, key: str) -> bool:
        """Tell whether requests go to this content now, here or on another machine."""
        served = self._store.read().served.values()
        return any(key in serving.versions.values() for serving in served)
