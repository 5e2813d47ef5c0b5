"""One line per event on standard error, for whoever runs the process to collect."""

from __future__ import annotations

import logging


def configure_logging(level: str) -> None:
    """Log at `level` and above, with time, process and module."""
    logging.basicConfig(
        level=level,
        format="%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s",
        force=True,
    )
