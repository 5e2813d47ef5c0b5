"""Trace settings, of all models and of single ones, as Triton's trace extension has them.

What is not set is Triton's default, unless a collector is named: then every request is traced.
Source: https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_trace.md
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Mapping
from typing import Any

from shared.errors import BadRequest, RedisUnavailable, UnknownModel, Unsupported
from shared.registry.catalog import Catalog
from shared.registry.keys import TRACE_COUNT
from shared.registry.registry import Registry
from shared.settings import LARGEST_TRACE_RATE, Settings

TRACE_LEVEL, TRACE_FILE, TRACE_MODE = "trace_level", "trace_file", "trace_mode"
TRACE_RATE = "trace_rate"
TRACE_DEFAULTS: dict[str, list[str]] = {
    TRACE_FILE: [""],
    TRACE_LEVEL: ["OFF"],
    TRACE_RATE: ["1000"],
    TRACE_COUNT: ["-1"],
    "log_frequency": ["0"],
    TRACE_MODE: ["triton"],
}
TIMESTAMPS = "TIMESTAMPS"
TRACE_LEVELS = (TIMESTAMPS, "TENSORS")
SMALLEST_NUMBERS = {TRACE_RATE: 0, TRACE_COUNT: -1, "log_frequency": 0}
"""The settings that are numbers; Triton keeps them in 32 bits with a sign."""
LARGEST_NUMBER = LARGEST_TRACE_RATE
SPENT_SECONDS = 1.0
"""For so long a process does not ask again for what is left of a count that is used up."""
_NUMBER = re.compile(r"[+-]?[0-9]{1,20}", re.ASCII)


class TraceSettings:
    """The trace settings of all processes; every method raises RedisUnavailable.

    Their values are lists of strings, as gRPC has them. A model has those of all models but for
    what was set for itself.
    """

    def __init__(self, registry: Registry, catalog: Catalog, settings: Settings) -> None:
        """Keep them in `registry`, of the models that `catalog` knows."""
        self._defaults = defaults(settings)
        self._registry = registry
        self._catalog = catalog

    def read(self, model: str | None) -> dict[str, list[str]]:
        """Return all settings of a model, or of all; raises UnknownModel."""
        self._check(model)
        kept = self._registry.trace_changes()
        found, owner = _effective(self._defaults, kept, model or "")
        if (count := int(found[TRACE_COUNT][0])) > 0:
            found[TRACE_COUNT] = [str(max(0, count - self._registry.traced(owner)))]
        return found

    def change(self, model: str | None, wanted: Mapping[str, list[str]]) -> dict[str, list[str]]:
        """Set these settings, forget those whose value is empty, and return all.

        Raises UnknownModel, Unsupported and BadRequest, and changes nothing then.
        """
        self._check(model)
        checked = {name: _checked(name, values) for name, values in wanted.items()}
        self._registry.change_trace(model or "", checked)
        self._catalog.refresh()
        return self.read(model)

    def _check(self, model: str | None) -> None:
        if not model:
            return
        try:
            self._catalog.find(model, None)
        except UnknownModel:
            raise UnknownModel(f"Request for unknown model : {model}") from None


class _Rule:
    """How requests of a model are drawn; `owner` is whose trace_count they take of."""

    def __init__(self, found: Mapping[str, list[str]], owner: str, share: float | None) -> None:
        self.is_on = TIMESTAMPS in found[TRACE_LEVEL]
        self._share = share
        self.rate, self.count = int(found[TRACE_RATE][0]), int(found[TRACE_COUNT][0])
        self.owner = owner
        self._numbers = itertools.count(1)
        self.spent_until = 0.0

    def is_turn(self) -> bool:
        """Tell whether the next request is one of every `rate`, or of the share that was given."""
        number = next(self._numbers)
        if self._share is None:
            return bool(self.rate) and number % self.rate == 0
        return int(number * self._share) > int((number - 1) * self._share)


class TraceSampler:
    """Draws the requests of one process that are traced, as Triton does.

    Every `trace_rate`-th is, `trace_count` of them in all processes together, and every one whose
    client records it itself, whatever rate and count say. One whose client does not is not.
    Source: https://github.com/triton-inference-server/server/blob/main/docs/user_guide/trace.md
    """

    def __init__(self, registry: Registry, catalog: Catalog, settings: Settings) -> None:
        """Go by the settings that `catalog` knows."""
        self._defaults = defaults(settings)
        self._share = settings.otel_traces_sampler_arg if settings.traces_url else None
        self._registry = registry
        self._catalog = catalog
        self._changes: dict[str, dict[str, list[str]]] = {}
        self._rules: dict[str, _Rule] = {}

    def is_on(self, model: str) -> bool:
        """Tell whether requests of a model may be traced at all."""
        return self._rule(model).is_on

    def takes(self, model: str, is_recorded: bool | None) -> bool:
        """Tell whether a request is traced; None: its client says nothing of traces."""
        if is_recorded is not None:
            return is_recorded
        rule = self._rule(model)
        if not rule.is_turn():
            return False
        return rule.count < 0 or self._has_left(rule)

    def _has_left(self, rule: _Rule) -> bool:
        if rule.count == 0 or time.monotonic() < rule.spent_until:
            return False
        try:
            if self._registry.count_traced(rule.owner) <= rule.count:
                return True
        except RedisUnavailable:
            return False
        rule.spent_until = time.monotonic() + SPENT_SECONDS
        return False

    def _rule(self, model: str) -> _Rule:
        changes = self._catalog.trace_changes()
        if changes is not self._changes:
            if changes != self._changes:
                self._rules = {}
            self._changes = changes
        name = model if model in changes else ""  # a client may name models that are not there
        rule = self._rules.get(name)
        if rule is None:
            found, owner = _effective(self._defaults, changes, name)
            unset = found[TRACE_RATE] is self._defaults[TRACE_RATE]
            rule = self._rules[name] = _Rule(found, owner, self._share if unset else None)
        return rule


def defaults(settings: Settings) -> dict[str, list[str]]:
    """Return the settings of a process of which none was set."""
    if not settings.traces_url:
        return TRACE_DEFAULTS
    of_collector = {
        TRACE_LEVEL: [TIMESTAMPS], TRACE_RATE: [str(settings.trace_rate)],
        TRACE_MODE: ["opentelemetry"],
    }  # fmt: skip
    return TRACE_DEFAULTS | of_collector


def _effective(
    unset: Mapping[str, list[str]], changes: Mapping[str, dict[str, list[str]]], model: str
) -> tuple[dict[str, list[str]], str]:
    """Return a model's settings, and whose trace_count it takes of."""
    own = changes.get(model, {}) if model else {}
    return {**unset, **changes.get("", {}), **own}, model if TRACE_COUNT in own else ""


def from_json(body: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return an HTTP body's settings as lists of strings, null as an empty one; raises BadRequest.

    One that names no levels changes none, as in Triton.
    """
    found = {}
    for name, value in body.items():
        values = [value] if isinstance(value, str) and name != TRACE_LEVEL else value
        if value is None:
            values = []
        elif name == TRACE_LEVEL and value == []:
            continue
        if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
            form = "a list of strings" if name == TRACE_LEVEL else "a string"
            raise BadRequest(f"{name} must be {form}, or null, not {value!r}")
        found[name] = values
    return found


def as_json(settings: Mapping[str, list[str]]) -> dict[str, Any]:
    """Return settings as HTTP's body has them: all but the levels are single strings."""
    return {name: values if name == TRACE_LEVEL else values[0] for name, values in settings.items()}


def _checked(name: str, values: list[str]) -> list[str]:
    """Return a setting's value as it is kept; raises Unsupported and BadRequest."""
    if name == TRACE_FILE:
        raise Unsupported("trace file location can not be updated through network protocol")
    if name not in TRACE_DEFAULTS or name == TRACE_MODE:
        raise BadRequest(f"{name!r} is not a trace setting that can be changed")
    if not values:
        return []
    if name == TRACE_LEVEL:
        return _levels(values)
    if len(values) > 1 or not _NUMBER.fullmatch(values[0]):
        raise BadRequest(f"Unable to parse '{name}', got: {', '.join(values)}")
    return [str(_in_range(name, int(values[0])))]


def _levels(values: list[str]) -> list[str]:
    if "OFF" in values and len(values) > 1:
        raise BadRequest("Expect only one trace level 'OFF' is specified")
    unknown = [level for level in values if level not in (*TRACE_LEVELS, "OFF")]
    if unknown:
        raise BadRequest(
            f"trace_level {unknown[0]!r} must be OFF, or some of {', '.join(TRACE_LEVELS)}"
        )
    return [level for level in TRACE_LEVELS if level in values] or ["OFF"]


def _in_range(name: str, number: int) -> int:
    smallest = SMALLEST_NUMBERS[name]
    if smallest <= number <= LARGEST_NUMBER:
        return number
    if name == TRACE_COUNT and number < smallest:
        raise BadRequest(f"Unable to parse 'trace_count'. Expecting value >= -1, got:{number}")
    raise BadRequest(
        f"Unable to parse '{name}', value is out of range "
        f"[ {smallest}, {LARGEST_NUMBER} ], got: {number}"
    )
