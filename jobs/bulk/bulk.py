"""Asks a model for every item of a file through the queue that everybody's requests wait on.

Its requests stand on a queue of their own behind all levels of priority, and only a few of them at
a time: a request of somebody else's waits for the batch that runs, and for none of a job's besides.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from redis import Redis

from api.payloads.predictions import describe_rows
from jobs.bulk.company import Company
from jobs.bulk.output_file import OutputFile
from jobs.bulk.questions import Question, Questions
from jobs.bulk.sources import Item, Source, open_source
from shared.errors import (
    BadRequest,
    FerryError,
    ModelCrashed,
    ModelNotReady,
    QueueFull,
    RedisUnavailable,
    RequestExpired,
    VersionRetired,
)
from shared.inputs.texts import TokenizerCache
from shared.messages import InferRequest, InferResult
from shared.model_spec import MAX_TOP_K, ModelSpec
from shared.registry.catalog import Catalog
from shared.registry.registry import Registry
from shared.request_queue.api_end import PendingRequest, RequestQueue
from shared.request_queue.keys import QueueKeys
from shared.request_queue.limits import Limits
from shared.settings import Settings

log = logging.getLogger(__name__)

REQUEST_SECONDS = 600.0
"""The deadline of one request of a job: others may keep it waiting for long."""
PATIENCE_SECONDS = 300.0
"""Without any answer a job gives up then, where Redis or the model is away; it can be resumed."""
STARVED_SECONDS = 3600.0
"""And then where they are there, but others, or an instance that hangs, leave it no turn."""
RETRY_SECONDS = 0.2
LOOK_SECONDS = 5.0
"""Between two looks at how many instances the model has."""
LEAST_WINDOW = 3
"""Requests under way: one that runs, one that waits for it, one that is being answered."""
SIGNATURE_BYTES = 8
AGAIN = (QueueFull, RequestExpired, RedisUnavailable, ModelNotReady)
"""The errors that say nothing of the request itself."""


class Bulk(NamedTuple):
    """What is asked: of which model, the input, the output, and how many classes a row is told.

    To `restart` writes over an output; to `follow` goes on when the version's content is replaced.
    A `job` that may be begun again after a kill at any moment names a file of its own, which says
    what the output comes to before that is there. Pictures that lie elsewhere than `within`, by
    links, are not read.
    """

    name: str
    input: Path
    output: Path
    version: str | None = None
    top_k: int = 3
    restart: bool = False
    follow: bool = False
    job: Path | None = None
    within: Path | None = None


class Progress(NamedTuple):
    """How far a job is."""

    done: int
    errors: int
    total: int

    @property
    def share(self) -> float:
        """Return the part that is done, from 0 to 1."""
        return self.done / self.total if self.total else 0.0

    @property
    def step(self) -> str:
        """Return the numbers in words."""
        of = f" of {self.total}" if self.total > self.done else ""
        return f"row {self.done}{of}, {self.errors} errors"


class Cancelled(KeyboardInterrupt):
    """A job is to end where it is, keep what it has done, and say so."""


class _Changed(Exception):
    """The version's content was replaced: what is asked is to be made anew."""


class _UnderWay(NamedTuple):
    question: Question
    pending: PendingRequest | None


def predict(
    bulk: Bulk, client: Redis, settings: Settings, told: Callable[[Progress], None]
) -> Progress:
    """Answer every item of the input in the output, in order; `told` is called as it goes on.

    Goes on behind what an earlier call with the same arguments has written. An item that the model
    does not take, or fails on, has a line with an `error`. Raises BadRequest for an input or output
    that cannot be, UnknownModel, ModelNotReady once nothing was answered for PATIENCE_SECONDS, and
    OSError of the disk; what was written stays.
    """
    if bulk.output.resolve() == bulk.input.resolve():
        raise BadRequest(f"{bulk.output}: it is the input, expected another file for the answers")
    if not 1 <= bulk.top_k <= MAX_TOP_K:
        raise BadRequest(f"top_k is {bulk.top_k}, expected 1 to {MAX_TOP_K}")
    job = _Job(bulk, client, settings)
    try:
        return job.run(told)
    except Cancelled:
        job.close(cancelled="by request")
        raise
    finally:
        job.close()


def finished(job: Path, output: Path) -> Progress | None:
    """Return what a job came to that was killed behind its end, if it was."""
    try:
        return Progress(*json.loads(job.read_bytes())) if output.exists() else None
    except (OSError, ValueError, TypeError):
        return None


class _Job:
    """One run of a job, on one thread: the window of requests under way, oldest first."""

    def __init__(self, bulk: Bulk, client: Redis, settings: Settings) -> None:
        self._bulk = bulk
        self._client, self._settings = client, settings
        self._registry = Registry(client, settings.key_prefix)
        self._catalog = Catalog(self._registry)
        self._tokenizers = TokenizerCache(self._registry)
        self._ask_what_serves(bulk.version)
        self._source = open_source(bulk.input, bulk.within)
        asked = _asked(bulk, self._spec, self._source)
        again = None if bulk.job is None else str(bulk.job)
        self._output = OutputFile(bulk.output, asked, restart=bulk.restart, job=again)
        self._window: deque[_UnderWay] = deque()
        self._number, self._errors = self._output.lines, self._output.errors
        self._answered_at = time.monotonic()
        self._most_under_way, self._look_at = LEAST_WINDOW, 0.0

    def _ask_what_serves(self, version: str | None) -> None:
        """Find the content that a version has now; raises UnknownModel and ModelNotReady."""
        bulk = self._bulk
        self._spec = self._catalog.serving(bulk.name, version)
        folder = bulk.input if bulk.input.is_dir() else bulk.input.parent
        self._questions = Questions(self._spec, self._tokenizers, folder)
        self._company = Company(self._client, self._settings.key_prefix, self._spec)
        keys = QueueKeys.of(self._spec, self._settings.key_prefix).with_bulk
        self._queue = RequestQueue(self._client, keys, Limits.of(self._spec, self._settings))

    def run(self, told: Callable[[Progress], None]) -> Progress:
        items = iter(self._source.behind(self._number))
        while together := tuple(islice(items, self._company.rows())):
            self._look()
            while len(self._window) >= self._most_under_way:
                self._settle(told)
            # Behind that, for an answer may say that another content serves from now on.
            self._window.extend(map(self._ask, self._questions.of(together)))
        while self._window:
            self._settle(told)
        done = Progress(self._number, self._errors, self._number)
        if self._bulk.job is not None:
            self._bulk.job.write_text(json.dumps(done), encoding="utf-8")
        self._output.finish()
        return done

    def close(self, *, cancelled: str = "") -> None:
        """Take back what is under way: another run asks it again."""
        while self._window:
            if (pending := self._window.pop().pending) is not None:
                pending.cancel()
        self._output.close(cancelled=cancelled)

    def _look(self) -> None:
        """Have two requests for each instance under way, and one that is being answered."""
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + LOOK_SECONDS
        try:
            ready = self._registry.ready_instances(self._spec.key)
        except RedisUnavailable:
            return  # the requests under way wait for it
        self._most_under_way = max(LEAST_WINDOW, 2 * ready + 1)

    def _settle(self, told: Callable[[Progress], None]) -> None:
        """Write the answers of the oldest request."""
        lines = list(self._lines(self._window[0]))
        self._output.write(lines)
        self._window.popleft()
        self._errors += sum("error" in line for line in lines)
        self._answered_at = time.monotonic()
        told(Progress(self._number, self._errors, max(self._source.total, self._number)))

    def _ask(self, question: Question) -> _UnderWay:
        if question.error:
            return _UnderWay(question, None)
        spec = self._spec
        # One of its own: who went along in the same batch would pay for all of its rows.
        request = InferRequest(
            self._queue.new_id(), len(question.items), question.inputs,
            timeout_seconds=REQUEST_SECONDS, signature=os.urandom(SIGNATURE_BYTES),
            priority=spec.bulk_queue, named=True,
        )  # fmt: skip
        return _UnderWay(question, self._queue.push(request))

    def _lines(self, under_way: _UnderWay) -> Iterator[dict[str, Any]]:
        """Yield a line for each item of a request; where it fails, parts of it are asked."""
        question, pending = under_way
        if pending is None:
            yield self._line(question, error=question.error)
            return
        try:
            rows = describe_rows(self._spec, self._answer(question, pending), self._bulk.top_k)
        except _Changed:
            yield from self._lines_of([question.items])
        except FerryError as error:
            if isinstance(error, AGAIN):
                raise  # nothing is wrong with it, and it was asked for long
            if len(question.items) == 1:
                yield self._line(question, error=error.message)
                return
            # What a process died of is not tried in one half after another.
            died = isinstance(error, ModelCrashed)
            parts = [(item,) for item in question.items] if died else question.halves
            yield from self._lines_of(parts)
        else:
            for item, row in zip(question.items, rows, strict=True):
                yield self._line(Question((item,)), prediction=row)

    def _lines_of(self, parts: Iterable[tuple[Item, ...]]) -> Iterator[dict[str, Any]]:
        for part in parts:
            for question in self._questions.of(part):
                yield from self._lines(self._ask(question))

    def _answer(self, question: Question, pending: PendingRequest) -> InferResult:
        """Wait for a request's answer, asking again as long as it is not the request's fault."""
        while True:
            try:
                return pending.wait()
            except VersionRetired:
                self._follow()
                raise _Changed from None
            except AGAIN as error:
                self._rest(error)
            again = self._ask(question).pending
            assert again is not None, "it was asked before"
            pending = again

    def _follow(self) -> None:
        """Ask the version's new content from here on, if that is wanted; raises ModelNotReady."""
        name, version = self._spec.name, self._spec.version
        if not self._bulk.follow:
            raise ModelNotReady(
                f"version {version} of '{name}' was replaced or left while it was asked: --follow "
                "goes on with what serves as this version now, --restart begins anew"
            )
        log.warning("version %s of '%s' was replaced, the job goes on with the new", version, name)
        self._ask_what_serves(version)

    def _line(self, question: Question, **said: Any) -> dict[str, Any]:
        self._number += 1
        return {"index": self._number - 1, "source": question.items[0].source, **said}

    def _rest(self, error: FerryError) -> None:
        waited = time.monotonic() - self._answered_at
        if waited > (STARVED_SECONDS if isinstance(error, RequestExpired) else PATIENCE_SECONDS):
            raise ModelNotReady(
                f"nothing was answered for {waited:.0f} s: {error.message}; asked the same, "
                "the job goes on where it stopped"
            )
        log.debug("asked again: %s", error)
        time.sleep(RETRY_SECONDS)


def _asked(bulk: Bulk, spec: ModelSpec, source: Source) -> dict[str, Any]:
    """Return what must be the same for a job to be resumed."""
    asked = {
        "model": f"{spec.name}/{spec.version}",
        "input": str(bulk.input.resolve()),
        "input_state": source.state,
        "top_k": bulk.top_k,
    }
    return asked if bulk.follow else asked | {"revision": spec.revision}
