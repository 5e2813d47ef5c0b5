"""One line per event on standard error, for whoever runs the process to collect."""

from __future__ import annotations

import logging

from shared.logs import log_as
from shared.registry.log_settings import LogLevel
from worker.meter import Meter


def configure_logging(level: str, form: str) -> None:
    """Log at `level` and above, with time, process and module."""
    log_as(level, form, force=True)
    # A model may close standard error: a line that cannot be written must not end its instance.
    logging.raiseExceptions = False


def follow_level(level: LogLevel, meter: Meter) -> None:
    """Log as the instance's supervisor wants it now, if it said so yet."""
    level.set(meter.log_level or level.number, iso_times=bool(meter.iso_times))
