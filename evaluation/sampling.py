"""Samples of a model, by SGLD: rounds on a replay buffer, new chains, and the samples to show.

Images are float32 (N, 3, H, W), meant for [-1, 1], where the chain's clamp keeps them. Every
function draws from generators of its own and restores the model's mode; between SGLD steps the
host reads nothing back from the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from data import generator_of
from evaluation import NotFinite, pgd
from evaluation.chains import BUFFER, FRESH, ROUNDS, begin, climb
from losses import Chain, ReplayBuffer, Start
from models import EnergyClassifier, eval_mode, sampling_mode


class Sampler:
    """SGLD chains for pictures. They draw from a generator of their own and store nothing, so that
    a training run stays as it was.

    Chains start from the slots of `buffer` as in training, or anew if it is None.
    """

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
        with sampling_mode(self.model):
            return self.chain.climb(self.model.log_px, self.start(n), self.generator)

    def conditional(
        self,
        num_classes: int,
        per_class: int,
        log_density: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Run per_class chains for each class in turn, up log_density(x, y), by default
        log q(x, y)."""
        density = log_density or self.model.log_pxy
        labels = torch.arange(num_classes, device=self.device).repeat_interleave(per_class)
        x = torch.cat([self.start(per_class, label) for label in range(num_classes)])
        with sampling_mode(self.model):
            return self.chain.climb(lambda x: density(x, labels), x, self.generator)


def fresh_buffer(
    size: int,
    num_classes: int,
    reinit_freq: float,
    start: Start | None = None,
    *,
    image_size: int,
    seed: int,
    device: torch.device | str,
) -> ReplayBuffer:
    """Make a replay buffer of new start images, which depend on `seed` alone. Raises what
    `losses.ReplayBuffer` raises."""
    shape = (3, image_size, image_size)
    with torch.random.fork_rng(devices=[]):  # it fills itself from the global random state
        buffer = ReplayBuffer(size, shape, reinit_freq, num_classes).to(device)
    if start is not None:
        buffer.start = start
    buffer.fill(generator_of(buffer.images.device, seed, BUFFER))
    return buffer


class Slots:
    """The slots of a replay buffer, which keep where the present chain of each began.

    `starts`, like the buffer's images: at first these, and the start image from where a chain
    restarts. `drawn` bool (size,): whether a chain has used the slot.
    """

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

    If `conditional`, climb log q(x, y) = log q(x|y) + const: chain i of round r is of class
    y = (i + r * chains) mod C, so that every class has its turn, and starts from a slot of it.
    Yields the images (chains, 3, H, W) of each round. The buffer is changed, and is on the model's
    device. Raises ValueError if there are more chains than slots, or than those of a class.
    """
    classes, device = slots.buffer.num_classes, slots.starts.device
    generator = generator_of(device, seed, ROUNDS)
    for r in range(rounds):
        labels = None
        if conditional:
            labels = (torch.arange(chains, device=device) + r * chains) % classes
            # Drawing puts the chains of a class side by side: chain i is the one at place[i].
            place = labels.argsort(stable=True).argsort()
            host = [(i + r * chains) % classes for i in range(chains)]  # no wait for the device
            of_class = [torch.full((host.count(y),), y, device=device) for y in sorted(set(host))]
            drawn = [slots.draw(len(y), y, generator) for y in of_class]
            start, at = (torch.cat(parts)[place] for parts in zip(*drawn, strict=True))
        else:
            start, at = slots.draw(chains, None, generator)
        images = climb(model, start, labels, chain, generator)
        slots.buffer.store(at, images)
        yield images


def fresh_chains(
    model: EnergyClassifier,
    legs: Sequence[Chain],
    n: int,
    *,
    seed: int,
    batch_size: int = 100,
    labels: Tensor | None = None,
    part: range | None = None,
) -> Iterator[list[Tensor]]:
    """Run n new chains up log q(x), or up log q(x, y) for labels y (n,), in batches; yield the
    images (b, 3, H, W) of a batch after each of the `legs_of` a chain.

    Chain i does not depend on n or on how the legs divide it, but on batch_size: each batch has a
    generator of its own. `part`: the numbers of the batches to sample; all where it is None.
    """
    device = next(model.parameters()).device
    for batch in range(-(-n // batch_size)) if part is None else part:
        first = batch * batch_size
        generator = generator_of(device, seed, FRESH, batch)
        real = min(batch_size, n - first)
        y = None if labels is None else labels[first : first + real]
        all_y = None if y is None else F.pad(y, (0, batch_size - real))
        x = begin(legs[0], batch_size, all_y, generator, model.image_size)
        images = []
        for leg in legs:
            if leg.steps:
                x = climb(model, x, y, leg, generator, real)
            images.append(x[:real])
        yield images


def legs_of(chain: Chain, seen: Sequence[int]) -> list[Chain]:
    """Return the parts of a chain that end after the numbers of steps `seen`, which ascend."""
    pairs = zip((0, *seen), seen, strict=False)
    return [replace(chain, steps=after - before) for before, after in pairs]


@torch.no_grad()
def classified(
    model: EnergyClassifier, images: Tensor, batch_size: int = 100
) -> tuple[Tensor, Tensor]:
    """Return each image's most probable class y, int64 (N,), and log q(y|x)/(1 - q(y|x)), float64.

    q(y|x) itself is 1 for many confident images, in float64, too, and would give them no order.
    """
    device = next(model.parameters()).device
    with eval_mode(model):
        outputs = [
            model.logits(batch.to(device, memory_format=torch.channels_last))
            for batch in images.split(batch_size)
        ]
    logits = torch.cat(outputs).double()
    labels = logits.argmax(1)
    return labels.to(images.device), -pgd.loss(logits, labels).to(images.device)


def most_confident(
    model: EnergyClassifier, images: Tensor, *, per_class: int, batch_size: int = 100
) -> tuple[Tensor, Tensor]:
    """Choose class-conditional samples as the ancestors do: by classifying unconditional ones.

    Row y of the result (C * per_class, 3, H, W) has the `per_class` images of highest q(y|x)
    among those classified as y, the highest first; where there are fewer, the rest of the row is
    black (-1). Returns it and the number of images of each class, int64 (C,).
    """
    labels, confidence = classified(model, images, batch_size)
    classes = model.class_output.out_features
    order = confidence.argsort(descending=True, stable=True)
    order = order[labels[order].argsort(stable=True)]  # by class, and within by confidence
    counts = torch.bincount(labels, minlength=classes)
    rank = torch.arange(per_class, device=images.device)
    place = (counts.cumsum(0) - counts)[:, None] + rank
    chosen = images[order[place.clamp(max=len(images) - 1)]]
    there = (rank < counts[:, None])[:, :, None, None, None]
    return torch.where(there, chosen, -1.0).flatten(0, 1), counts


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


def most_confident_parts(
    model: EnergyClassifier, images: Tensor, *, shares: Sequence[float], batch_size: int = 100
) -> list[Tensor]:
    """Return for each of `shares`, 0..1, the indices (int64) of that share of each predicted class
    with the highest max_y q(y|x), from one pass of the network over images (N, 3, H, W).

    The protocol of JEM++ and SADA-JEM (`cond_is_fid` in their code), which evaluate a part of
    the replay buffer: .9 of it for the FID against training and test images together, and .1 for
    the Inception Score, with max(1, n // 5000) splits. A class of m images keeps int(m * share);
    they come class after class, the most confident first.
    """
    labels, confidence = (each.cpu() for each in classified(model, images, batch_size))
    ranked = []
    for y in range(model.class_output.out_features):
        members = (labels == y).nonzero().squeeze(1)
        ranked.append(members[confidence[members].argsort(descending=True, stable=True)])
    return [torch.cat([best[: int(len(best) * share)] for best in ranked]) for share in shares]
