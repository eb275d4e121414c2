"""Sampling by SGLD: chains from new starts or from a replay buffer; and refinement, JEM's SGLD
steps on images before they are scored or classified.

Images are float32 (N, 3, H, W) with pixels in [-1, 1], which chains without a clamp may leave.
Every function draws from generators of its own and restores the model's mode. Between SGLD steps
the host does not wait for the device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from data import EVAL_NOISE_BLOCK, generator_of
from evaluation import NotFinite
from evaluation.classification import log_odds_against
from losses import Chain, ReplayBuffer
from models import EnergyClassifier, Flow, eval_mode, sampling_mode
from runs.processes import mixed

# Random streams of one seed. data.batches has the streams 0 and 1: a chain's noise must not repeat
# the noise that was added to its start image.
BUFFER, ROUNDS, FRESH, REFINEMENT, INVERSE = 2, 3, 4, 6, 7


def climb(
    model: EnergyClassifier,
    x: Tensor,
    labels: Tensor | None,
    chain: Chain,
    generator: torch.Generator,
    n: int | None = None,
) -> Tensor:
    """Run SGLD from x (N, 3, H, W) up log q(x), or for labels y (n,) up
    log q(x) + chain.guidance * log q(y|x), and return the end points of all N.

    Noise is drawn for all N chains and the network sees the first n of them, so that a chain's
    noise does not depend on n. The chains after the first n have no gradient and only diffuse.
    """
    n = len(x) if n is None else n

    def log_density(x: Tensor) -> Tensor:
        if labels is None:
            return model.log_px(x[:n])
        return model.log_pxy(x[:n], labels, chain.guidance)

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
    blocks: Iterable[tuple[Tensor, Tensor]],
    chain: Chain,
    *,
    seed: int,
    first: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (images, labels) after `chain`'s steps up log q(x): Grathwohl et al. (2020), section
    5.4 and their --n_steps_refine.

    `blocks`: consecutive batches of EVAL_NOISE_BLOCK images, of which the last of a set may have
    fewer; `first`: the first block's number. An image's noise depends on its index alone.
    """
    for index, (images, labels) in enumerate(blocks, first):
        n = len(images)
        # A full block: in a smaller noise tensor the same images could get other noise.
        shape = (EVAL_NOISE_BLOCK, *images.shape[1:])
        x = torch.zeros(shape, device=images.device).to(memory_format=torch.channels_last)
        x[:n] = images
        generator = generator_of(images.device, seed, REFINEMENT, index)
        yield climb(model, x, None, chain, generator, n)[:n], labels


class Sampler:
    """Run SGLD chains for pictures, from slots of `buffer` as in training or, if it is None, from
    new starts. Chains draw from a generator of the sampler and are not stored in the buffer."""

    def __init__(
        self, model: EnergyClassifier, buffer: ReplayBuffer | None, chain: Chain, *, seed: int
    ) -> None:
        self.model, self.buffer, self.chain = model, buffer, chain
        self.device = next(model.parameters()).device
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def start(self, n: int, label: int | None = None) -> Tensor:
        """Draw start images (n, 3, H, W), of the class `label` if given."""
        labels = None if label is None else torch.full((n,), label, device=self.device)
        if self.buffer is None:
            return begin(self.chain, n, labels, self.generator, self.model.image_size)
        return self.buffer.draw(n, labels, self.generator)[0]

    def unconditional(self, n: int) -> Tensor:
        """Run n chains up log q(x)."""
        return climb(self.model, self.start(n), None, self.chain, self.generator)

    def conditional(
        self,
        num_classes: int,
        per_class: int,
        log_density: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Run per_class chains for each class in turn, up log_density(x, y), by default the
        density of `climb` for labels."""
        labels = torch.arange(num_classes, device=self.device).repeat_interleave(per_class)
        x = torch.cat([self.start(per_class, label) for label in range(num_classes)])
        density = log_density or partial(self.model.log_pxy, guidance=self.chain.guidance)
        with sampling_mode(self.model):
            return self.chain.climb(lambda x: density(x, labels), x, self.generator)


class Slots:
    """The slots of a replay buffer. `starts`, of the shape of its images: the start image of each
    slot's present chain; `drawn` bool (size,): whether the slot has been drawn."""

    def __init__(self, buffer: ReplayBuffer) -> None:
        self.buffer, self.starts = buffer, buffer.images.clone()
        self.drawn = torch.zeros(len(self.starts), dtype=torch.bool, device=self.starts.device)

    def draw(
        self, n: int, labels: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw slots (n,), of the classes `labels` (n,) if given. Return start images (n, 3, H, W),
        the slots' images or, with probability `buffer.reinit_freq`, new starts; and the slots."""
        start, slots = self.buffer.draw(n, labels, generator)
        restarted = self.buffer.restarted(slots, start)[:, None, None, None]
        self.starts[slots] = torch.where(restarted, start, self.starts[slots])
        self.drawn.index_fill_(0, slots, True)
        return start, slots


def sampling_rounds(
    model: EnergyClassifier,
    slots: Slots,
    chain: Chain,
    *,
    rounds: int,
    chains: int,
    seed: int,
    conditional: bool = False,
) -> Iterator[Tensor]:
    """Sample as JEM does: draw `chains` slots, climb log q(x), store; `rounds` times.

    If `conditional`, climb as `climb` does for labels: chain i of round r is of class
    y = (i + r * chains) mod C and starts from a slot of y. Yields the images (chains, 3, H, W) of
    each round. The buffer, on the model's device, is changed. Raises ValueError if there are more
    chains than slots, or more chains of a class than slots of the class.
    """
    classes, device = slots.buffer.num_classes, slots.starts.device
    generator = generator_of(device, seed, ROUNDS)
    for r in range(rounds):
        labels = None
        if conditional:
            labels = (torch.arange(chains, device=device) + r * chains) % classes
            # Slots are drawn class by class: chain i has entry position[i] of the drawn chains. A
            # class's chains are counted on the host, so that it does not wait for the device.
            position = labels.argsort(stable=True).argsort()
            counts = Counter((i + r * chains) % classes for i in range(chains))
            of_class = [torch.full((n,), y, device=device) for y, n in sorted(counts.items())]
            drawn = [slots.draw(len(y), y, generator) for y in of_class]
            start, index = (torch.cat(parts)[position] for parts in zip(*drawn, strict=True))
        else:
            start, index = slots.draw(chains, None, generator)
        images = climb(model, start, labels, chain, generator)
        slots.buffer.store(index, images)
        yield images


def fresh_chains(
    model: EnergyClassifier,
    chain: Chain,
    chains: range,
    *,
    seen: Sequence[int],
    seed: int,
    labels: Tensor | None = None,
) -> Iterator[list[Tensor]]:
    """Run new chains, as `climb` does. For each batch yield a list: its images (b, 3, H, W) after
    each of the numbers of steps in `seen`, in ascending order.

    `chains`: the chains' numbers, range(first, last, batch size), where first is a multiple of the
    batch size. labels (n,): labels[i] is chain i's. A chain depends on its number and on the batch
    size alone: each batch has a generator of its own, and noise for a full batch.
    """
    device = next(model.parameters()).device
    legs = [replace(chain, steps=b - a) for a, b in zip((0, *seen), seen, strict=False)]
    for first in chains:
        generator = generator_of(device, seed, FRESH, first // chains.step)
        n = min(chains.step, chains.stop - first)
        y = None if labels is None else labels[first : first + n]
        padded_y = None if y is None else F.pad(y, (0, chains.step - n))
        x = begin(chain, chains.step, padded_y, generator, model.image_size)
        images = []
        for leg in legs:
            if leg.steps:
                x = climb(model, x, y, leg, generator, n)
            images.append(x[:n])
        yield images


def flow_samples(
    model: Flow, n: int, *, seed: int, batch_size: int = 100
) -> tuple[Tensor, Tensor | None]:
    """Draw n images of a flow by its inverse; with class_cond also return their classes (n,), each
    class in turn, as their priors are equal. Images depend on batch_size, but not on n."""
    labels = None
    if model.class_cond:
        labels = torch.arange(n, device=next(model.parameters()).device) % model.num_classes
    images = []
    for batch, first in enumerate(range(0, n, batch_size)):
        last = min(first + batch_size, n)
        y = None if labels is None else labels[first:last]
        images.append(model.sample(last - first, y, mixed(seed, INVERSE, batch)))
    return torch.cat(images), labels


@torch.no_grad()
def most_confident(model: EnergyClassifier, images: Tensor, batch_size: int = 100) -> list[Tensor]:
    """Return, for each class, the indices of the images (N, 3, H, W) that are classified as it, on
    the CPU, highest q(y|x) first.

    Sorted by `log_odds_against`: q(y|x) itself rounds to 1 for many images, even in float64.
    """
    device = next(model.parameters()).device
    with eval_mode(model):
        outputs = [
            model.logits(batch.to(device, memory_format=torch.channels_last))
            for batch in images.split(batch_size)
        ]
    logits = torch.cat(outputs).double().cpu()
    labels = logits.argmax(1)
    order = log_odds_against(logits, labels).argsort(stable=True)
    return [order[labels[order] == y] for y in range(logits.shape[1])]


def check_finite(images: Tensor, step: int) -> None:
    """Raise NotFinite if an image has a NaN or an infinity. The host waits for the device."""
    bad = len(images) - int(images.isfinite().flatten(1).all(1).sum())
    if bad:
        raise NotFinite(
            f"{bad} of {len(images)} chains are not finite after {step} steps: lower --sgld_lr"
        )


def to_uint8(images: Tensor) -> Tensor:
    """Return round((x + 1) * 127.5), uint8 (N, H, W, 3), of images (N, 3, H, W) clipped to [-1, 1]:
    the inverse of `data.to_float`. NaN becomes 0."""
    x = images.detach().float().clamp(-1, 1).nan_to_num(nan=-1.0)
    return ((x + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
