"""Trace settings, of all models and of single ones, as Triton's trace extension has them.

They are kept and answered, for clients that set them on their way, and nothing is traced yet.
Source: https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_trace.md
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from shared.errors import BadRequest, UnknownModel, Unsupported
from shared.registry.catalog import Catalog
from shared.registry.registry import Registry

TRACE_LEVEL, TRACE_FILE, TRACE_MODE = "trace_level", "trace_file", "trace_mode"
TRACE_DEFAULTS: dict[str, list[str]] = {
    TRACE_FILE: [""],
    TRACE_LEVEL: ["OFF"],
    "trace_rate": ["1000"],
    "trace_count": ["-1"],
    "log_frequency": ["0"],
    TRACE_MODE: ["triton"],
}
TRACE_LEVELS = ("TIMESTAMPS", "TENSORS")
SMALLEST_NUMBERS = {"trace_rate": 0, "trace_count": -1, "log_frequency": 0}
"""The settings that are numbers; Triton keeps them in 32 bits with a sign."""
LARGEST_NUMBER = 2**31 - 1
_NUMBER = re.compile(r"[+-]?[0-9]{1,20}", re.ASCII)


class TraceSettings:
    """The trace settings of all processes; every method raises RedisUnavailable.

    Their values are lists of strings, as gRPC has them. A model has those of all models but for
    what was set for itself.
    """

    def __init__(self, registry: Registry, catalog: Catalog) -> None:
        """Keep them in `registry`, of the models that `catalog` knows."""
        self._registry = registry
        self._catalog = catalog

    def read(self, model: str | None) -> dict[str, list[str]]:
        """Return all settings of a model, or of all; raises UnknownModel."""
        self._check(model)
        kept = self._registry.trace_changes()
        return TRACE_DEFAULTS | kept.get("", {}) | (kept.get(model, {}) if model else {})

    def change(self, model: str | None, wanted: Mapping[str, list[str]]) -> dict[str, list[str]]:
        """Set these settings, forget those whose value is empty, and return all.

        Raises UnknownModel, Unsupported and BadRequest, and changes nothing then.
        """
        self._check(model)
        checked = {name: _checked(name, values) for name, values in wanted.items()}
        self._registry.change_trace(model or "", checked)
        return self.read(model)

    def _check(self, model: str | None) -> None:
        if not model:
            return
        try:
            self._catalog.find(model, None)
        except UnknownModel:
            raise UnknownModel(f"Request for unknown model : {model}") from None


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
    if name == "trace_count" and number < smallest:
        raise BadRequest(f"Unable to parse 'trace_count'. Expecting value >= -1, got:{number}")
    raise BadRequest(
        f"Unable to parse '{name}', value is out of range "
        f"[ {smallest}, {LARGEST_NUMBER} ], got: {number}"
    )
