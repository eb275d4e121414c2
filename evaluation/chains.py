"""SGLD chains, the common part of sampling and refinement: starts, noise and the climb; and
refinement: images that climb log q(x) before the model is asked about them, as JEM does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from data import EVAL_NOISE_BLOCK, generator_of
from losses import Chain
from models import EnergyClassifier, sampling_mode

Batch = tuple[Tensor, Tensor]

# Streams of one seed. Those of data.batches are 0 and 1: noise of a chain must not repeat the
# noise that was added to the image it starts from.
BUFFER, ROUNDS, FRESH, REFINEMENT = 2, 3, 4, 6


def climb(
    model: EnergyClassifier,
    x: Tensor,
    labels: Tensor | None,
    chain: Chain,
    generator: torch.Generator,
    n: int | None = None,
) -> Tensor:
    """Run SGLD from x (N, 3, H, W) up log q(x), or up log q(x, y) for labels y (n,), and return
    the end points of all N.

    Noise is drawn for all N, and the network sees the first n: a chain's noise belongs to its
    place, not to how many chains there are. Chains beyond n only diffuse.
    """
    n = len(x) if n is None else n

    def log_density(x: Tensor) -> Tensor:
        return model.log_px(x[:n]) if labels is None else model.log_pxy(x[:n], labels)

    with sampling_mode(model):
        return chain.climb(log_density, x, generator)


def begin(
    chain: Chain, n: int, labels: Tensor | None, generator: torch.Generator, size: int
) -> Tensor:
    """Draw start images (n, 3, size, size) of a chain, in channels_last on the generator's device;
    labels (n,) are their classes."""
    like = torch.empty(n, 3, size, size, device=generator.device)
    x = chain.start.draw(like, labels, generator)
    return x.contiguous(memory_format=torch.channels_last)


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
    """Yield the same images and labels in batches of `size`; the last batch may be smaller."""
    kept: Batch | None = None
    for batch in batches:
        images, labels = batch if kept is None else map(torch.cat, zip(kept, batch, strict=True))
        while len(images) >= size:
            yield images[:size], labels[:size]
            images, labels = images[size:], labels[size:]
        kept = images, labels
    if kept is not None and len(kept[0]):
        yield kept
