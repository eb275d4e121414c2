"""Samples of a model, by SGLD: chains that begin anew or on a replay buffer, and images that climb
log q(x) before the model is asked about them, as JEM refines them.

Images are float32 (N, 3, H, W), meant for [-1, 1], where the chain's clamp keeps them. Every
function draws from generators of its own and restores the model's mode; between SGLD steps the
host reads nothing back from the device.
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

# Streams of one seed. Those of data.batches are 0 and 1: noise of a chain must not repeat the
# noise that was added to the image it starts from.
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

    Noise is drawn for all N, and the network sees the first n: a chain's noise belongs to its
    place, not to how many chains there are. Chains beyond n only diffuse.
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
    fewer; `first`: the number of the first. Noise belongs to the image's index, whatever follows.
    """
    for index, (images, labels) in enumerate(blocks, first):
        n = len(images)
        # A full block in one memory format: langevin's noise is filled in the order of memory.
        shape = (EVAL_NOISE_BLOCK, *images.shape[1:])
        x = torch.zeros(shape, device=images.device).to(memory_format=torch.channels_last)
        x[:n] = images
        generator = generator_of(images.device, seed, REFINEMENT, index)
        yield climb(model, x, None, chain, generator, n)[:n], labels


class Sampler:
    """SGLD chains for pictures, from the slots of `buffer` as in training, or anew if it is None.
    They draw from a generator of their own and store nothing."""

    def __init__(
        self, model: EnergyClassifier, buffer: ReplayBuffer | None, chain: Chain, *, seed: int
    ) -> None:
        self.model, self.buffer, self.chain = model, buffer, chain
        self.device = next(model.parameters()).device
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def start(self, n: int, label: int | None = None) -> Tensor:
        """Draw start images (n, 3, H, W), with a `label` from the slots of that class."""
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
        """Run per_class chains for each class in turn, up log_density(x, y), by default as
        `climb` does."""
        labels = torch.arange(num_classes, device=self.device).repeat_interleave(per_class)
        x = torch.cat([self.start(per_class, label) for label in range(num_classes)])
        density = log_density or partial(self.model.log_pxy, guidance=self.chain.guidance)
        with sampling_mode(self.model):
            return self.chain.climb(lambda x: density(x, labels), x, self.generator)


class Slots:
    """The slots of a replay buffer. `starts`, like its images: where the present chain of each
    began; `drawn` bool (size,): whether a chain has used the slot."""

    def __init__(self, buffer: ReplayBuffer) -> None:
        self.buffer, self.starts = buffer, buffer.images.clone()
        self.drawn = torch.zeros(len(self.starts), dtype=torch.bool, device=self.starts.device)

    def draw(
        self, n: int, labels: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Begin n chains: images (n, 3, H, W) and their slots (n,). A chain starts from its slot,
        of its class where labels (n,) are given, or anew with probability `buffer.reinit_freq`."""
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
    y = (i + r * chains) mod C and starts from a slot of it. Yields the images (chains, 3, H, W) of
    each round. The buffer is changed, and is on the model's device. Raises ValueError if there are
    more chains than slots, or than those of a class.
    """
    classes, device = slots.buffer.num_classes, slots.starts.device
    generator = generator_of(device, seed, ROUNDS)
    for r in range(rounds):
        labels = None
        if conditional:
            labels = (torch.arange(chains, device=device) + r * chains) % classes
            # Drawing puts the chains of a class side by side: chain i is the one at place[i]. They
            # are counted on the host, which need not wait for the device.
            place = labels.argsort(stable=True).argsort()
            counts = Counter((i + r * chains) % classes for i in range(chains))
            of_class = [torch.full((n,), y, device=device) for y, n in sorted(counts.items())]
            drawn = [slots.draw(len(y), y, generator) for y in of_class]
            start, at = (torch.cat(parts)[place] for parts in zip(*drawn, strict=True))
        else:
            start, at = slots.draw(chains, None, generator)
        images = climb(model, start, labels, chain, generator)
        slots.buffer.store(at, images)
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
    """Run new chains, as `climb` does; yield the images (b, 3, H, W) of a batch after each of the
    numbers of steps `seen`, which ascend.

    `chains`: the numbers of those to run, range(first, last, batch size), of which first is a
    multiple of the batch size. labels (n,): the i-th is chain i's. A chain depends on its number
    and on the batch size alone: each batch has a generator of its own.
    """
    device = next(model.parameters()).device
    legs = [replace(chain, steps=b - a) for a, b in zip((0, *seen), seen, strict=False)]
    for first in chains:
        generator = generator_of(device, seed, FRESH, first // chains.step)
        real = min(chains.step, chains.stop - first)
        y = None if labels is None else labels[first : first + real]
        all_y = None if y is None else F.pad(y, (0, chains.step - real))
        x = begin(chain, chains.step, all_y, generator, model.image_size)
        images = []
        for leg in legs:
            if leg.steps:
                x = climb(model, x, y, leg, generator, real)
            images.append(x[:real])
        yield images


def flow_samples(
    model: Flow, n: int, *, seed: int, batch_size: int = 100
) -> tuple[Tensor, Tensor | None]:
    """Draw n images of a flow by its inverse; with class_cond also return their classes (n,), which
    take turns, as equal priors have it. Images do not depend on n, but on batch_size."""
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
    """Return, for each class, which of the images (N, 3, H, W) are classified as it: indices on the
    CPU, the image of highest q(y|x) first.

    Ordered by `log_odds_against`: q(y|x) itself is 1 for many confident images, in float64, too.
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
