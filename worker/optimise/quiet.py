"""Keeps what libraries say about themselves away from people, who did not write their code."""

from __future__ import annotations

import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout


@contextmanager
def quiet() -> Iterator[list[warnings.WarningMessage]]:
    """Catch warnings, log lines and output of libraries, also of their C++ and their compilers.

    Yields the list of warnings as they come, for whoever has to know one of them. Only the error
    that is raised leaves the block.
    """
    before = logging.root.manager.disable
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    kept = [os.dup(number) for number in (1, 2)]
    try:
        with tempfile.TemporaryFile() as sink, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for number in (1, 2):
                os.dup2(sink.fileno(), number)
            logging.disable(logging.CRITICAL)
            said = io.StringIO()  # a stream need not lead to the process's own output
            with redirect_stdout(said), redirect_stderr(said):
                yield caught
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)
        logging.disable(before)


def first_sentence(error: BaseException, limit: int = 300) -> str:
    """Return the first line of an error that says something, for a sentence of ours."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if any(map(str.isalnum, line))] or [""]
    if "Traceback of TorchScript" in str(error):  # what it is about stands behind the traceback
        return said[-1][:limit]
    return f"{type(error).__name__}: {said[0][:limit]}".rstrip(": ")
