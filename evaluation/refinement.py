"""Refinement: images that climb log q(x) before the model is asked about them, as JEM does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from data import EVAL_NOISE_BLOCK
from evaluation.chains import REFINEMENT, climb, generator_of
from losses import Chain
from models import EnergyClassifier

Batch = tuple[Tensor, Tensor]


def refined(
    model: EnergyClassifier,
    batches: Iterable[Batch],
    *,
    chain: Chain,
    seed: int = 0,
    block: int = EVAL_NOISE_BLOCK,
    first: int = 0,
) -> Iterator[Batch]:
    """Yield (images, labels) after `chain`'s steps up log q(x), in batches of `block` images.

    Grathwohl et al. (2020), section 5.4 and their --n_steps_refine. Noise belongs to the image's
    index, so the result depends neither on the batch size that comes in nor on how many images
    follow. `first`: which block of a set the batches begin with. Images may leave [-1, 1]. With
    steps 0 the batches pass through as they are.
    """
    if chain.steps == 0:
        yield from batches
        return
    for index, (images, labels) in enumerate(_blocks(batches, block), first):
        n = len(images)
        # A full block in one memory format: langevin's noise is filled in the order of memory.
        shape = (block, *images.shape[1:])
        x = torch.zeros(shape, device=images.device).to(memory_format=torch.channels_last)
        x[:n] = images
        generator = generator_of(images.device, seed, REFINEMENT, index)
        yield climb(model, x, None, chain, generator, n)[:n], labels


def _blocks(batches: Iterable[Batch], size: int) -> Iterator[Batch]:
    """The same images and labels in batches of `size`, the last one of what is left."""
    kept: Batch | None = None
    for batch in batches:
        images, labels = batch if kept is None else map(torch.cat, zip(kept, batch, strict=True))
        while len(images) >= size:
            yield images[:size], labels[:size]
            images, labels = images[size:], labels[size:]
        kept = images, labels
    if kept is not None and len(kept[0]):
        yield kept
