"""Train the network of `digits`: handwriting and typeset digits, varied anew in each epoch."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from samples.digits.augmentation import augment
from samples.digits.network import DigitNetwork
from samples.digits.pictures import resize, training_handwriting, typeset_digits

SEED = 7
# 14 epochs take about 20 s and reach 99.7 % held out; 30 reach no more (2026-11-21).
EPOCH_COUNT = 14
BATCH_SIZE = 128
PEAK_LEARNING_RATE = 4e-3
# As config.pbtxt states them.
IMAGE_MEAN = 0.5
IMAGE_STD = 0.5


def train() -> nn.Module:
    """Return the trained network in eval mode, the same every time; global seeds stay put.

    It trains on one thread: sums then keep their order on any number of cores, and on two busy
    cores it took 26 s where two threads, waiting for each other, took 93 s (2026-11-21).
    """
    thread_count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            network = DigitNetwork()
            _fit(network, *_training_set(), torch.Generator().manual_seed(SEED))
    finally:
        torch.set_num_threads(thread_count)
    return network.eval()


def _training_set() -> tuple[torch.Tensor, torch.Tensor]:
    """Return pictures [n, 1, 32, 32] with ink 1 on paper 0, and labels [n]."""
    handwriting, handwriting_labels = training_handwriting()
    typeset, typeset_labels = typeset_digits(range(70, 135, 8), range(0, 9, 2))
    pictures = np.concatenate([np.stack([resize(p) for p in handwriting]), typeset])
    labels = np.concatenate([handwriting_labels, typeset_labels])
    return torch.from_numpy(pictures).unsqueeze(1) / 255, torch.from_numpy(labels)


def _fit(
    network: nn.Module, ink: torch.Tensor, labels: torch.Tensor, generator: torch.Generator
) -> None:
    """Train `network` in place on `ink` [n, 1, 32, 32] and `labels` [n]."""
    batch_count = -(-len(ink) // BATCH_SIZE)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LEARNING_RATE, total_steps=EPOCH_COUNT * batch_count
    )
    for _ in range(EPOCH_COUNT):
        order = torch.randperm(len(ink), generator=generator)
        for start in range(0, len(ink), BATCH_SIZE):
            rows = order[start : start + BATCH_SIZE]
            pixels = (augment(ink[rows], generator) - IMAGE_MEAN) / IMAGE_STD
            loss = functional.cross_entropy(network(pixels), labels[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
