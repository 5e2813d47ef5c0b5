"""What a scenario came to: one row of the table from the tally and the blows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from chaos.client import Answer, Tally, Trouble
from chaos.scenarios import Scenario
from chaos.strikes import Strike

IN_FLIGHT_SECONDS = 0.1
"""A request sent so long before Redis goes has reached it: refusing it then would be losing it."""
SETTLE_SECONDS = 2.0
"""How long after Redis is back a refusal may still be about its absence."""


@dataclass(frozen=True)
class Row:
    """One scenario's figures. `again_count` requests were answered by a second or third attempt."""

    scenario: Scenario
    times: int
    sent: int
    right: int
    failed: int
    wrong: int
    refused: int
    again_count: int
    reconnected: int
    slowest_seconds: float
    next_answer_seconds: float | None
    measured_seconds: float | None
    troubles: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Tell whether every request was answered, and right."""
        return self.right > 0 and self.failed == 0 and self.wrong == 0


def judge(scenario: Scenario, tally: Tally, strikes: Sequence[Strike]) -> Row:
    """Return the scenario's row.

    A refused request was asked again, and counts by its last answer; a refusal is a failure of
    its own unless Redis was away when the request was sent. A request that is in no list was lost
    with its client, and is a failure. An answer by a version that another one had replaced when the
    request was sent is wrong.
    """
    misrouted = _misrouted(tally.answers, strikes)
    unjustified = [refusal for refusal in tally.refusals if not _justified(refusal, strikes)]
    lost = tally.sent - len(tally.answers) - len(tally.failures) - len(tally.wrong)
    troubles = [*tally.failures, *tally.wrong, *misrouted, *unjustified]
    waits = [answer.received_at - answer.sent_at for answer in tally.answers]
    gaps = _gaps(tally.answers, strikes) if scenario.ends_answers else []
    return Row(
        scenario,
        len(strikes),
        tally.sent,
        len(tally.answers) - len(misrouted),
        len(tally.failures) + len(unjustified) + lost,
        len(tally.wrong) + len(misrouted),
        len(tally.refusals) - len(unjustified),
        sum(answer.attempts > 1 for answer in tally.answers),
        tally.reconnected,
        max(waits, default=0.0),
        median(gaps) if gaps else None,
        max((strike.seconds for strike in strikes if strike.seconds is not None), default=None),
        tuple(f"at {trouble.sent_at:.3f}: {trouble.text}" for trouble in troubles),
    )


def _justified(refusal: Trouble, strikes: Sequence[Strike]) -> bool:
    return any(
        (strike.away_from or strike.at) - IN_FLIGHT_SECONDS
        <= refusal.sent_at
        <= strike.away_until + SETTLE_SECONDS
        for strike in strikes
        if strike.away_until is not None
    )


def _misrouted(answers: Sequence[Answer], strikes: Sequence[Strike]) -> list[Trouble]:
    """Return the answers by another version than was to give them.

    That is the one of the last change that was done when the request was sent, or of one that began
    before its answer was there.
    """
    changes = [strike for strike in strikes if strike.version]
    done = [change.changed_at for change in changes]
    found = []
    for answer in answers:
        last = bisect_right(done, answer.sent_at) - 1
        allowed = {item.version for item in changes[last:] if item.at < answer.received_at}
        if last >= 0 and answer.version not in allowed:
            text = f"answered by version {answer.version} after `use` of {changes[last].version}"
            found.append(Trouble(answer.sent_at, text))
    return found


def _gaps(answers: Sequence[Answer], strikes: Sequence[Strike]) -> list[float]:
    """Return the seconds from each blow to the next answer that was not on its way already.

    It is not by one of the victims, and comes when Redis is back.
    """
    answers = sorted(answers, key=lambda answer: answer.received_at)
    times = [answer.received_at for answer in answers]
    gaps = []
    for strike in strikes:
        after = answers[bisect_right(times, strike.away_until or strike.at) :]
        received = (item.received_at for item in after if item.instance not in strike.victims)
        if (first := next(received, None)) is not None:
            gaps.append(first - strike.at)
    return gaps
