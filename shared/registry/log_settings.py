"""Log settings of all processes, set over the protocol (Triton's logging extension).

What was set is kept in the registry, a number for each setting. API processes, supervisors and
instances follow it; a setting that nobody set is what the process's FERRY_LOG_LEVEL makes of it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from shared.errors import BadRequest
from shared.registry.registry import Registry

SWITCHES = {
    "log_info": logging.INFO,
    "log_warning": logging.WARNING,
    "log_error": logging.ERROR,
}
VERBOSE = "log_verbose_level"
MAX_VERBOSE = 2**31 - 1
FIXED = {"log_file": "", "log_format": "default"}
"""Settings that have one value here: logs go to standard error, in one format."""


def changes_of(body: Mapping[str, Any]) -> dict[str, int]:
    """Return a client's log settings as the registry keeps them; raises BadRequest."""
    unknown = sorted(body.keys() - SWITCHES.keys() - FIXED.keys() - {VERBOSE})
    if unknown:
        raise BadRequest(f"{unknown[0]!r} is not a log setting")
    for name, value in FIXED.items():
        if body.get(name, value) != value:
            raise BadRequest(f"{name} {body[name]!r} is not supported: it can only be {value!r}")
    for name in SWITCHES.keys() & body.keys():
        if type(body[name]) is not bool:
            raise BadRequest(f"{name} must be true or false, not {body[name]!r}")
    verbose = body.get(VERBOSE, 0)
    if type(verbose) is not int or not 0 <= verbose <= MAX_VERBOSE:
        raise BadRequest(f"{VERBOSE} must be a whole number from 0, not {verbose!r}")
    return {name: int(value) for name, value in body.items() if name not in FIXED}


def settings_of(default_level: int, changes: Mapping[str, int]) -> dict[str, Any]:
    """Return all log settings of a process that would log at `default_level`."""
    default = {name: level >= default_level for name, level in SWITCHES.items()}
    switches = {name: bool(changes.get(name, default[name])) for name in SWITCHES}
    verbose = changes.get(VERBOSE, int(default_level <= logging.DEBUG))
    return {"log_file": "", **switches, VERBOSE: verbose, "log_format": "default"}


def level_of(settings: Mapping[str, Any]) -> int:
    """Return the logging level that log settings stand for."""
    if settings[VERBOSE]:
        return logging.DEBUG
    wanted = [level for name, level in SWITCHES.items() if settings[name]]
    return min(wanted, default=logging.CRITICAL)


class LogLevel:
    """At which level this process logs now; `number` is logging's."""

    def __init__(self, default: str, *loggers: str) -> None:
        """Leave everything as it is: at `default`, for the root logger and the named `loggers`."""
        self.default = self.number = logging.getLevelNamesMapping()[default]
        self._loggers = ("", *loggers)

    def follow(self, changes: Mapping[str, int]) -> None:
        """Log as was set for all processes."""
        self.set(level_of(settings_of(self.default, changes)))

    def set(self, number: int) -> None:
        """Log at this level; costs next to nothing when that is so already."""
        if number != self.number:
            for name in self._loggers:
                logging.getLogger(name).setLevel(number)
            self.number = number


class LogSettings:
    """The log settings of all processes, as the API shows and changes them.

    Its own process follows at once, the others when they look into the registry next. Every method
    raises RedisUnavailable.
    """

    def __init__(self, registry: Registry, level: LogLevel) -> None:
        """Keep the settings in `registry`; `level` is this process's."""
        self._registry = registry
        self._level = level

    def read(self) -> dict[str, Any]:
        """Return all settings."""
        changes = self._registry.log_changes()
        self._level.follow(changes)
        return settings_of(self._level.default, changes)

    def change(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Set the settings in `body` and return all; raises BadRequest, and sets nothing."""
        changes = changes_of(body)
        if changes:
            self._registry.change_log(changes)
        return self.read()
