"""Runs steps in processes of their own: a crash, a hang or a lack of memory is an outcome."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from shared.errors import BadModel
from worker.instance.process import die_with_parent
from worker.optimise.quiet import first_sentence, quiet

GIVEN_TO_LEAVE_SECONDS = 5.0


class Outcome(NamedTuple):
    """What a step returned, or the sentence that says why it did not."""

    value: Any = None
    fault: str = ""


Step = Callable[..., Any]
"""Gets the pipe and its arguments; it may send and receive before it returns what is pickled."""


def in_a_process(step: Step, *arguments: Any, seconds: float) -> Outcome:
    """Run a step to its end; with a limit that it runs past it is killed."""
    with Helper(step, *arguments) as helper:
        return helper.result(seconds)


class Helper:
    """A process that runs one step, with a pipe to it; killed when the block ends."""

    def __init__(self, step: Step, *arguments: Any) -> None:
        """Start it."""
        context = get_context("forkserver")
        context.set_forkserver_preload(["worker.instance.forkserver_preload"])
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_run, args=(theirs, step, arguments), daemon=False, name="ferry-optimise"
        )
        self._process.start()
        theirs.close()

    def __enter__(self) -> Helper:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process and what it has started."""
        self.end()

    def send(self, message: Any) -> None:
        """Send to the step; whether it lives shows when it is read from."""
        with suppress(OSError):
            self._pipe.send(message)

    def result(self, seconds: float) -> Outcome:
        """Return what comes next; a fault in one sentence when nothing does."""
        try:
            if not self._pipe.poll(seconds):
                return Outcome(fault=f"it ran past its limit of {seconds:.0f} s and was ended")
            found: Outcome = self._pipe.recv()
        except (EOFError, OSError):
            return Outcome(fault=self._death())
        return found

    def end(self) -> None:
        """Kill the process, and those that it started."""
        pid = self._process.pid
        if pid is not None and self._process.is_alive():
            for kill in (os.killpg, os.kill):
                with suppress(OSError):
                    kill(pid, signal.SIGKILL)
        self._process.join(GIVEN_TO_LEAVE_SECONDS)
        self._pipe.close()

    def _death(self) -> str:
        self._process.join(GIVEN_TO_LEAVE_SECONDS)
        code = self._process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            memory = ", as the kernel does for lack of memory" if name == "SIGKILL" else ""
            return f"its process was ended by {name}{memory}"
        return f"its process ended with exit code {code}"


def _run(pipe: Connection, step: Step, arguments: tuple[Any, ...]) -> None:
    """Run a step: the body of the process."""
    os.setsid()  # so that compilers which it starts end with it, and Ctrl-C is the parent's
    die_with_parent()
    outcome = Outcome()
    with quiet():
        try:
            outcome = Outcome(step(pipe, *arguments))
        except BaseException as error:  # a border: libraries and operators' code raise anything
            outcome = Outcome(fault=_said(error))
    with suppress(OSError):
        pipe.send(outcome)
    os._exit(0)  # what a library left running is nobody's


def _said(error: BaseException) -> str:
    return str(error) if isinstance(error, BadModel) else first_sentence(error)


class Clock:
    """The time that is left of a budget."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        """Begin now."""
        self._now, self._end = now, now() + seconds
        self.seconds = seconds

    def left(self) -> float:
        """Return the seconds left, 0 when there are none."""
        return max(0.0, self._end - self._now())
