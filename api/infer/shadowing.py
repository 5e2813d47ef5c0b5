"""Sends copies of answered requests to a shadow version and compares the answers.

Nobody waits for a shadow. Copies are gathered while requests are answered, and sent together, at
the lowest priority, by a thread that takes no more than a tenth of its process's time.
"""

from __future__ import annotations

import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from threading import Event, Lock, Thread
from typing import NamedTuple, TypeVar

from api.infer.question import Question
from shared.bodies.turns import let_others
from shared.errors import FerryError, QueueFull, RedisUnavailable, VersionRetired
from shared.messages import InferResult
from shared.model_spec import ModelSpec
from shared.operations.disagreements import Disagreement, kept_row
from shared.operations.shadow_comparison import (
    Comparison,
    Comparisons,
    compared,
    differing_row,
    summed,
)
from shared.request_queue.api_end import PendingRequest, RequestQueue

log = logging.getLogger(__name__)

GATHER_SECONDS = 0.1
"""Copies of so long are sent together, and travel in the shadow's batches."""
MAX_COPIES = 256
"""Copies that one process sends together; of more, so many are drawn at random."""
MAX_COPIES_BYTES = 64 * 2**20
PAUSES = 9
"""The time between two rounds, in times of what the last one cost the process."""
EXAMPLE_SECONDS = 1.0
"""Of a shadow that always disagrees, a process keeps an example so often, behind the first ones."""
Result = TypeVar("Result")
Pair = tuple[str, str]
"""A shadow's `ModelSpec.key` and the version that it is compared with."""


class Copy(NamedTuple):
    """A request that a shadow is to be asked as well, and the answer that `version` gave to it."""

    question: Question
    version: str
    answer: InferResult

    @property
    def pair(self) -> Pair:
        """Return what is compared with what."""
        return self.question.spec.key, self.version


class Round:
    """Copies to be sent together: of those that came, each as likely as any other."""

    def __init__(self) -> None:
        """Hold none yet."""
        self.copies: list[Copy] = []
        self.skipped: Counter[Pair] = Counter()
        self._came = self._bytes = 0

    def add(self, copy: Copy) -> None:
        """Keep a copy, perhaps in the place of one that came before (reservoir sampling)."""
        self._came += 1
        size = sum([len(tensor.data) for tensor in copy.question.inputs])
        if len(self.copies) < MAX_COPIES and self._bytes + size <= MAX_COPIES_BYTES:
            self.copies.append(copy)
            self._bytes += size
            return
        place = random.randrange(self._came)
        if place < len(self.copies):
            copy, self.copies[place] = self.copies[place], copy
        self.skipped[copy.pair] += 1


class Stopwatch:
    """Adds up what pieces of work take, and lets requests have their turn between them."""

    def __init__(self) -> None:
        """Begin at nothing."""
        self.seconds = 0.0

    def of(self, work: Callable[[], Result]) -> Result:
        """Do a piece of work."""
        let_others()
        began = time.perf_counter()
        try:
            return work()
        finally:
            self.seconds += time.perf_counter() - began


class Examples:
    """The disagreements of one round, as many as may be kept of each pair."""

    def __init__(self, most: int) -> None:
        """Keep up to `most` of a pair at once, and then one in EXAMPLE_SECONDS."""
        self.most = most
        self.found: dict[Pair, list[Disagreement]] = {}
        self._due: dict[Pair, float] = {}

    def add(self, copy: Copy, answer: InferResult | FerryError) -> None:
        """Keep a copy that the shadow answered otherwise, or not at all, if it has its turn."""
        now = time.monotonic()
        due = max(self._due.get(copy.pair, 0.0), now - self.most * EXAMPLE_SECONDS)
        if due > now - EXAMPLE_SECONDS:
            return
        self._due[copy.pair] = due + EXAMPLE_SECONDS
        self.found.setdefault(copy.pair, []).append(_disagreement(copy, answer))


class Shadowing:
    """One thread that asks the shadows, round by round, and counts how they compare."""

    def __init__(
        self,
        comparisons: Comparisons,
        queue_of: Callable[[ModelSpec], RequestQueue],
        timeout_seconds: float,
        most_examples: int = 0,
    ) -> None:
        """Count into `comparisons`, ask by the queues; the thread starts with the first copy.

        Of each pair `most_examples` disagreements are kept there.
        """
        self._comparisons = comparisons
        self._examples = Examples(most_examples)
        self._queue_of = queue_of
        self._timeout_seconds = timeout_seconds
        self._round = Round()
        self._more = Event()
        self._starting = Lock()
        self._started = False
        self.under_way = 0

    def copy(self, question: Question, version: str, answer: InferResult) -> None:
        """Ask a shadow soon the `question` that `version` answered; never fails or waits."""
        with self._starting:
            self._round.add(Copy(question, version, answer))
            if not self._started:
                Thread(target=self._compare_forever, name="ferry-shadow", daemon=True).start()
                self._started = True
        self._more.set()

    def _compare_forever(self) -> None:
        while True:
            self._more.wait()
            time.sleep(GATHER_SECONDS)
            self._more.clear()
            with self._starting:
                gathered, self._round = self._round, Round()
            try:
                spent_seconds = self._compare_round(gathered)
            except Exception:  # a border: the next round is compared
                log.exception("a round of copies is not counted")
            else:
                time.sleep(PAUSES * spent_seconds)

    def _compare_round(self, gathered: Round) -> float:
        """Ask, wait and count; return how many seconds of this process that took."""
        took = Stopwatch()
        asked = [took.of(partial(self._ask, copy)) for copy in gathered.copies]
        for spec in {
            copy.question.spec.key: copy.question.spec for copy in gathered.copies
        }.values():
            took.of(self._queue_of(spec).release)
        for waiting in asked:
            waiting.done.wait()
        self.under_way = 0
        found: dict[Pair, list[Comparison]] = {}
        for copy, waiting in zip(gathered.copies, asked, strict=True):
            comparison = took.of(partial(_compare, copy, waiting, self._examples))
            found.setdefault(copy.pair, []).append(comparison)
        for pair, count in gathered.skipped.items():
            found.setdefault(pair, []).append(Comparison(skipped_count=count))
        for pair, each in found.items():
            self._count(pair, summed(each))
        took.of(self._keep_examples)
        return took.seconds

    def _ask(self, copy: Copy) -> PendingRequest:
        queue = self._queue_of(copy.question.spec)
        request = copy.question.request(queue.new_id(), self._timeout_seconds)
        self.under_way += 1
        return queue.hold(request, lambda: None)

    def _count(self, pair: Pair, counted: Comparison) -> None:
        try:
            self._comparisons.add(*pair, counted)
        except RedisUnavailable as error:
            log.debug("a comparison is lost: %s", error)

    def _keep_examples(self) -> None:
        found, self._examples.found = self._examples.found, {}
        for pair, each in found.items():
            try:
                self._comparisons.keep(*pair, each, self._examples.most)
            except RedisUnavailable as error:
                log.debug("examples are lost: %s", error)


def _compare(copy: Copy, waiting: PendingRequest, examples: Examples) -> Comparison:
    try:
        answer = waiting.wait()
        comparison = compared(copy.answer, answer)
        if comparison.agreed_count < comparison.row_count:
            examples.add(copy, answer)
        return comparison
    except QueueFull:  # the shadow is slower than what it is asked
        return Comparison(skipped_count=1)
    except VersionRetired:
        return Comparison()
    except FerryError as error:
        log.debug("the shadow %s failed: %s", copy.pair[0], error)
        examples.add(copy, error)
    except Exception:  # a border: whatever a shadow answers, the next ones are compared
        log.exception("an answer of the shadow %s is counted as failed", copy.pair[0])
    return Comparison(request_count=1, failed_count=1)


def _disagreement(copy: Copy, answer: InferResult | FerryError) -> Disagreement:
    """Return the first row of a copy that was answered otherwise."""
    served, row = copy.answer, 0 if copy.question.spec.batched else None
    if not isinstance(answer, FerryError) and row is not None:
        row = differing_row(served, answer)
    return Disagreement(
        time.time(),
        kept_row(copy.question.inputs, row),
        kept_row(served.outputs, row),
        () if isinstance(answer, FerryError) else kept_row(answer.outputs, row),
        answer.message if isinstance(answer, FerryError) else "",
    )
