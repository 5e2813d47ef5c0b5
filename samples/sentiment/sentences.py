"""Labelled sentences: reading them, keeping the exam out of them, varying them, making tokens."""

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer

FOLDER = Path(__file__).parent
LABELS = ("negative", "positive")  # in the order of labels.txt and of the logits
# One author each.
TRAINING_FILES = (
    "training.tsv",
    "training_a.tsv",
    "training_b.tsv",
    "training_c.tsv",
    "training_d.tsv",
)
HELD_OUT_FILES = ("held_out.tsv", "held_out_second.tsv")  # written apart, never trained on
MAX_OVERLAP = 0.6  # words in common / words in either, above which two sentences are too alike

# Share of the sentences that each variation changes.
SHORT_FORM_SHARE = 0.15
OPENING_SHARE = 0.07
BARE_END_SHARE = 0.15
JOINED_SHARE = 0.12
# In this order: the general "n't" would otherwise spoil "can't" and "won't".
SHORT_FORMS = [
    ("can't", "cannot"),
    ("won't", "will not"),
    ("n't ", " not "),
    ("I'm ", "I am "),
    ("It's ", "It is "),
    ("it's ", "it is "),
    ("They're", "They are"),
]
OPENINGS = [
    "Honestly, ",
    "To be honest, ",
    "I must say, ",
    "In short: ",
    "Well, ",
    "For what it's worth, ",
    "Last month: ",
    "My sister agrees: ",
    "As I told my friends, ",
    "Look, ",
    "Frankly, ",
    "Update: ",
]

Pair = tuple[str, str]  # (label, sentence)


class Example(NamedTuple):
    """One sentence as token ids, and the index of its label in `LABELS`."""

    token_ids: list[int]
    label: int


def read_sentences(path: Path) -> list[Pair]:
    """Read `label<TAB>sentence` lines to (label, sentence) pairs."""
    pairs = []
    for line in path.read_text(encoding="utf-8").splitlines():
        label, sentence = line.split("\t")
        pairs.append((label, sentence))
    return pairs


def read_held_out() -> list[Pair]:
    """Give the sentences of both held-out files."""
    return [pair for name in HELD_OUT_FILES for pair in read_sentences(FOLDER / name)]


def drop_near_duplicates(pairs: Iterable[Pair], exam: Iterable[Pair]) -> list[Pair]:
    """Give the pairs that share no more than `MAX_OVERLAP` of their words with any exam pair."""
    exam_words = [split_words(sentence) for _, sentence in exam]
    return [pair for pair in pairs if not _is_too_alike(split_words(pair[1]), exam_words)]


def _is_too_alike(words: set[str], others: Iterable[set[str]]) -> bool:
    return any(len(words & other) > MAX_OVERLAP * len(words | other) for other in others)


def split_words(sentence: str) -> set[str]:
    """Give the different words of a sentence, in lower case."""
    return set(re.findall(r"[a-z']+", sentence.lower()))


def vary(pairs: Sequence[Pair], chooser: random.Random) -> list[Pair]:
    """Give as many pairs, some reworded without a change of meaning, some joined to another."""
    by_label: dict[str, list[str]] = defaultdict(list)
    for label, sentence in pairs:
        by_label[label].append(sentence)
    return [(label, _vary_one(text, by_label[label], chooser)) for label, text in pairs]


def _vary_one(sentence: str, same_label: list[str], chooser: random.Random) -> str:
    if chooser.random() < SHORT_FORM_SHARE:
        for short, long in SHORT_FORMS:
            sentence = sentence.replace(short, long)
    if chooser.random() < OPENING_SHARE:
        sentence = chooser.choice(OPENINGS) + sentence
    if chooser.random() < BARE_END_SHARE:
        sentence = sentence.rstrip(".!")
    if chooser.random() < JOINED_SHARE:
        joint = chooser.choice([". ", ". ", " and ", "; "])
        sentence = sentence.rstrip(".") + joint + chooser.choice(same_label)
    return sentence


def encode_examples(
    tokenizer: Tokenizer, sentences: Iterable[Pair], max_length: int
) -> list[Example]:
    """Turn (label, sentence) pairs into examples of at most `max_length` tokens."""
    return [
        Example(tokenizer.encode(sentence).ids[:max_length], LABELS.index(label))
        for label, sentence in sentences
    ]
