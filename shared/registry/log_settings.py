"""Log settings of all processes, set over the protocol (Triton's logging extension).

What was set is kept in the registry, a number for each setting. API processes, supervisors and
instances follow it; a setting that nobody set is what the process's FERRY_LOG_LEVEL makes of it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from shared.errors import BadRequest
from shared.registry.registry import Registry

SWITCHES = {
    "log_info": logging.INFO,
    "log_warning": logging.WARNING,
    "log_error": logging.ERROR,
}
VERBOSE, LOG_FILE, TIME_FORMAT = "log_verbose_level", "log_file", "log_format"
MAX_VERBOSE = 2**31 - 1
LOG_FORMATS = ("default", "ISO8601")
"""Values of `log_format`: how the time is written; the registry keeps a format's place."""


def changes_of(body: Mapping[str, Any]) -> dict[str, int]:
    """Return a client's log settings as the registry keeps them; raises BadRequest."""
    unknown = sorted(body.keys() - SWITCHES.keys() - {LOG_FILE, TIME_FORMAT, VERBOSE})
    if unknown:
        raise BadRequest(f"{unknown[0]!r} is not a log setting")
    if body.get(LOG_FILE, "") != "":
        raise BadRequest(
            f"{LOG_FILE} {body[LOG_FILE]!r} is not supported, logs go to standard error: log file "
            "location can not be updated through network protocol"
        )
    for name in SWITCHES.keys() & body.keys():
        if type(body[name]) is not bool:
            raise BadRequest(f"{name} must be true or false, not {body[name]!r}")
    verbose = body.get(VERBOSE, 0)
    if type(verbose) is not int or not 0 <= verbose <= MAX_VERBOSE:
        raise BadRequest(f"{VERBOSE} must be a whole number from 0, not {verbose!r}")
    form = body.get(TIME_FORMAT, LOG_FORMATS[0])
    if form not in LOG_FORMATS:
        raise BadRequest(f"{TIME_FORMAT} must be one of {', '.join(LOG_FORMATS)}, not {form!r}")
    numbers = {
        name: int(value) for name, value in body.items() if name not in (LOG_FILE, TIME_FORMAT)
    }
    return numbers | ({TIME_FORMAT: LOG_FORMATS.index(form)} if TIME_FORMAT in body else {})


def settings_of(default_level: int, changes: Mapping[str, int]) -> dict[str, Any]:
    """Return all log settings of a process that would log at `default_level`."""
    default = {name: level >= default_level for name, level in SWITCHES.items()}
    switches = {name: bool(changes.get(name, default[name])) for name in SWITCHES}
    verbose = changes.get(VERBOSE, int(default_level <= logging.DEBUG))
    form = LOG_FORMATS[changes.get(TIME_FORMAT, 0)]
    return {LOG_FILE: "", **switches, VERBOSE: verbose, TIME_FORMAT: form}


def level_of(settings: Mapping[str, Any]) -> int:
    """Return the logging level that log settings stand for."""
    if settings[VERBOSE]:
        return logging.DEBUG
    wanted = [level for name, level in SWITCHES.items() if settings[name]]
    return min(wanted, default=logging.CRITICAL)


class LogLevel:
    """How this process logs now: `number` is logging's level, `iso_times` the form of the times."""

    def __init__(self, default: str, *loggers: str) -> None:
        """Leave everything as it is: at `default`, for the root logger and the named `loggers`."""
        self.default = self.number = logging.getLevelNamesMapping()[default]
        self.iso_times = False
        self._loggers = ("", *loggers)

    def follow(self, changes: Mapping[str, int]) -> None:
        """Log as was set for all processes."""
        settings = settings_of(self.default, changes)
        self.set(level_of(settings), iso_times=settings[TIME_FORMAT] != LOG_FORMATS[0])

    def set(self, number: int, *, iso_times: bool = False) -> None:
        """Log at this level, in this form; costs next to nothing when that is so already."""
        if number != self.number:
            for name in self._loggers:
                logging.getLogger(name).setLevel(number)
            self.number = number
        if iso_times != self.iso_times:
            for name in self._loggers:
                _write_times(logging.getLogger(name), iso=iso_times)
            self.iso_times = iso_times


def _write_times(logger: logging.Logger, *, iso: bool) -> None:
    """Have a logger's lines begin with times in ISO 8601, or in their formatters' own way."""
    for handler in logger.handlers:
        if iso and handler.formatter is not None:
            handler.formatter.formatTime = _iso_time  # type: ignore[assignment]
        elif handler.formatter is not None:
            vars(handler.formatter).pop("formatTime", None)


def _iso_time(record: logging.LogRecord, _: str | None = None) -> str:
    """Return when a line was logged, as in 2026-11-29T17:00:00.123Z."""
    time = datetime.fromtimestamp(record.created, UTC)
    return time.strftime("%Y-%m-%dT%H:%M:%S.") + f"{time.microsecond // 1000:03d}Z"


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
