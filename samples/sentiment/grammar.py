"""Sentences built from hand-written fragments: they teach plain praise, blame and negation.

`fragments.tsv` holds `kind<TAB>label<TAB>text`. In the patterns below, {a} and {b} are fragments of
the sentence's own label, {x} one of the opposite label, {s} and {t} subjects. A pattern under a
denied kind turns its label round: "The soup was not good." is negative.
"""

import random
from collections import defaultdict
from pathlib import Path

OPPOSITE = {"positive": "negative", "negative": "positive"}
Fragments = dict[tuple[str, str], list[str]]

# (share of the sentences, kind of fragment, whether the pattern denies it, patterns)
PATTERNS: list[tuple[float, str, bool, list[str]]] = [
    (
        0.22,
        "adjective",
        False,
        [
            "The {s} was {a}.",
            "The {s} was really {a}.",
            "A {a} {s}.",
            "What a {a} {s}!",
            "I thought the {s} was {a}.",
            "We found the {s} {a}.",
            "The {s} is simply {a}.",
            "The {s} was {a} and {b}.",
            "{a} {s}, {b} {t}.",
            "My wife called the {s} {a}, and she is right.",
            "Such a {a} {s}, and the {t} was {b} too.",
            "{a}!",
            "{a} and {b}.",
        ],
    ),
    (
        0.2,
        "deniable",
        True,
        [
            "The {s} was not {a}.",
            "The {s} wasn't {a} at all.",
            "I would not call the {s} {a}.",
            "The {s} was far from {a}.",
            "The {s} was anything but {a}.",
            "The {s} was never {a}.",
            "The {s} is hardly {a}.",
            "I can't say the {s} was {a}.",
            "There was nothing {a} about the {s}.",
            "Nobody could call the {s} {a}.",
            "Not a {a} {s}.",
            "The {s} wasn't in the least {a}.",
            "I had expected a {a} {s}; it was nothing of the kind.",
            "The {s} was neither {a} nor {b}.",
            "I was told the {s} would be {a}, but it wasn't.",
            "Not {a}.",
            "Never {a}, never {b}.",
        ],
    ),
    (
        0.1,
        "action",
        True,
        [
            "The {s} did not {a}.",
            "The {s} didn't {a}, not once.",
            "It doesn't {a}.",
            "They didn't {a} and they didn't {b}.",
            "I waited for the {s} to {a}, and it never happened.",
        ],
    ),
    (
        0.13,
        "adjective",
        False,
        [
            "The {s} was {x}, but in the end the {t} was {a}.",
            "The {s} looked {x}, yet it turned out {a}.",
            "I expected a {x} {s} and got a {a} one.",
            "Despite the {x} {s}, a {a} {t}.",
            "The {s} used to be {x}; now it is {a}.",
            "Although the {s} was {x}, I found the whole thing {a}.",
            "{x} {s}, but what a {a} {t}.",
            "Everyone said the {s} was {x}; I found it {a}.",
            "At first the {s} seemed {x}, then it proved {a}.",
        ],
    ),
    (0.24, "predicate", False, ["The {s} {a}.", "The {s} {x}, but the {t} {a} and {b}."]),
    (0.07, "closing", False, ["{a}.", "{a}!", "We tried the {s}, and {a}.", "{a}, and {b}."]),
    (0.04, "opening", False, ["{a}.", "{a}!", "{a}. {b}."]),
]


def build_sentences(count: int, seed: int) -> list[tuple[str, str]]:
    """Give `count` (label, sentence) pairs, both labels in turn; the same seed, the same pairs."""
    chooser = random.Random(seed)
    fragments = _read_fragments(Path(__file__).with_name("fragments.tsv"))
    labels = ["negative", "positive"]
    return [_build_one(labels[i % 2], fragments, chooser) for i in range(count)]


def _read_fragments(path: Path) -> Fragments:
    """Group the fragments by kind and label; a subject has the label `-`."""
    fragments: Fragments = defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines():
        kind, label, text = line.split("\t")
        fragments[kind, label].append(text)
    return fragments


def _build_one(label: str, fragments: Fragments, chooser: random.Random) -> tuple[str, str]:
    """Fill one random pattern so that the sentence has `label`."""
    shares = [share for share, _, _, _ in PATTERNS]
    _, kind, denied, patterns = chooser.choices(PATTERNS, weights=shares)[0]
    fragment_label = OPPOSITE[label] if denied else label
    first, second = chooser.sample(fragments[kind, fragment_label], 2)
    subject, other_subject = chooser.sample(fragments["subject", "-"], 2)
    sentence = chooser.choice(patterns).format(
        a=first,
        b=second,
        x=chooser.choice(fragments[kind, OPPOSITE[fragment_label]]),
        s=subject,
        t=other_subject,
    )
    return label, sentence[0].upper() + sentence[1:]
