"""Phrases built from a hand-written lexicon: they teach which words praise and which blame.

The encoder was published for likeness of topic, which puts "early" next to "late" and "kind" next
to "rude"; training on these phrases first pulls such words apart.

`lexicon.tsv` holds `kind<TAB>label<TAB>text`. An adjective, noun or did (what something or somebody
did) fills a pattern; a saying stands alone. {a} is the text, {s} a subject of `fragments.tsv`.
"""

import random
from pathlib import Path
from typing import NamedTuple

from samples.sentiment.sentences import Pair

OPPOSITE = {"positive": "negative", "negative": "positive"}
DENIED_SHARE = 0.25  # of the adjectives
ADJECTIVE = [
    "{a}",
    "it was {a}",
    "the {s} was {a}",
    "the {s} is {a}",
    "so {a}",
    "really {a}",
    "a {s} that is {a}",
    "everything was {a}",
    "they were {a}",
    "we found the {s} {a}",
]
DENIED_ADJECTIVE = [
    "not {a}",
    "not {a} at all",
    "it wasn't {a}",
    "the {s} was not {a}",
    "hardly {a}",
    "far from {a}",
    "never {a}",
    "anything but {a}",
    "the {s} isn't {a}",
]
PATTERNS = {
    "adjective": ADJECTIVE,
    "noun": [
        "{a}",
        "what {a}",
        "it was {a}",
        "the {s} is {a}",
        "the {s} was {a}",
        "the {s} turned out to be {a}",
    ],
    "did": ["{a}", "it {a}", "the {s} {a}", "they {a}", "the {s} {a}", "I {a}", "we {a}"],
    "saying": ["{a}"],
}
# The second half of a sentence with one of these decides its label.
TURNS = [", but ", ", but ", ", yet ", "; however, ", ", but in the end "]
CONTINUATIONS = [" and ", ". ", "; ", ", "]


class Entry(NamedTuple):
    """A line of the lexicon."""

    kind: str
    label: str
    text: str


class Lexicon:
    """Builds phrases from the entries, every entry once, and joins entries two by two."""

    def __init__(self, folder: Path) -> None:
        """Read `lexicon.tsv`, and the subjects of `fragments.tsv`, in `folder`."""
        self._entries = _read_entries(folder / "lexicon.tsv")
        fragments = _read_entries(folder / "fragments.tsv")
        self._subjects = [entry.text for entry in fragments if entry.kind == "subject"]

    def build_phrases(self, joined_count: int, chooser: random.Random) -> list[Pair]:
        """Give one phrase per entry and `joined_count` of two entries, as (label, phrase)."""
        phrases = [self._fill(entry, chooser) for entry in self._entries]
        phrases += [self._join(chooser) for _ in range(joined_count)]
        return [(label, _finish(phrase, chooser)) for label, phrase in phrases]

    def _fill(self, entry: Entry, chooser: random.Random) -> Pair:
        patterns, label = PATTERNS[entry.kind], entry.label
        if entry.kind == "adjective" and chooser.random() < DENIED_SHARE:
            patterns, label = DENIED_ADJECTIVE, OPPOSITE[label]
        pattern, subject = chooser.choice(patterns), chooser.choice(self._subjects)
        return label, pattern.format(a=entry.text, s=subject)

    def _join(self, chooser: random.Random) -> Pair:
        """Two phrases of opposite labels with a turn between them, or two of the same label."""
        label, first = self._fill(chooser.choice(self._entries), chooser)
        kind = chooser.choices(["turn", "although", "continuation"], weights=[5, 2, 3])[0]
        wanted = label if kind == "continuation" else OPPOSITE[label]
        second_label, second = self._fill(chooser.choice(self._entries), chooser)
        while second_label != wanted:
            second_label, second = self._fill(chooser.choice(self._entries), chooser)
        if kind == "although":
            return wanted, f"although {first}, {second}"
        joints = TURNS if kind == "turn" else CONTINUATIONS
        return wanted, first + chooser.choice(joints) + second


def _read_entries(path: Path) -> list[Entry]:
    return [Entry(*line.split("\t")) for line in path.read_text(encoding="utf-8").splitlines()]


def _finish(phrase: str, chooser: random.Random) -> str:
    """Give the phrase a capital and, mostly, a full stop."""
    return phrase[0].upper() + phrase[1:] + chooser.choice([".", ".", ".", "!", ""])
