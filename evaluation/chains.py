"""SGLD chains, the common part of sampling and refinement: starts, noise and the climb."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from losses import Chain
from models import EnergyClassifier, sampling_mode

# Streams of one seed. Those of data.batches are 0 and 1: noise of a chain must not repeat the
# noise that was added to the image it starts from.
BUFFER, ROUNDS, FRESH, TRAJECTORY, REFINEMENT = range(2, 7)


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


def generator_of(device: torch.device, *key: int) -> torch.Generator:
    """A generator seeded by all the numbers of `key` (each >= 0), well mixed."""
    mixed = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(mixed))
