"""Why a benchmark could not be run at all; a slow result is no error."""

from __future__ import annotations


class BenchError(Exception):
    """A process did not start, ended, or did not answer: there is nothing to measure."""
