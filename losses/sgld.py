"""`--pxsgld` and `--pxysgld`: maximise log q(x) or log q(x|y) against SGLD samples."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.objective import Build, Metrics, Step
from losses.start import Start, UniformStart, new_start
from models import EnergyClassifier, sampling_mode, scoring_mode
from runs import processes as distributed
from runs.cli import fits
from runs.names import BN_CHAINS, PX_LOSSES

LARGEST_PIXEL = 10.0  # a chain with a larger |pixel| has diverged; images are in [-1, 1]

LogDensity = Callable[[Tensor], Tensor]


def langevin(
    log_density: LogDensity,
    x: Tensor,
    *,
    steps: int,
    step_size: float,
    noise_std: float,
    grad_clip: float = math.inf,
    clamp: bool = False,
    generator: torch.Generator | None = None,
    differentiable: bool = False,
) -> Tensor:
    """Run stochastic gradient Langevin dynamics.

        x <- x + step_size * d/dx log q(x) + noise_std * N(0, I)

    JEM's sampler: step_size and noise_std are free, where HDGE's Eq. 5 has the step alpha/2 and the
    variance alpha. `log_density` maps (N, ...) to (N,); each image is a chain of its own. A step
    clamps each pixel's gradient to [-grad_clip, grad_clip], moves x, adds the noise and, with
    `clamp`, clamps the pixels to [-1, 1] (both clamps are JEM++'s). Returns the end points, without
    gradient, and does not change `x`. With `differentiable`, x must require a gradient, and the end
    points keep theirs to x: a graph of all steps with second derivatives of log q. With 0 steps the
    end points share x's memory.
    """
    for _ in range(steps):
        if not differentiable:
            x = x.detach().requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(log_density(x).sum(), x, create_graph=differentiable)
        # randn, not randn_like: filling a channels_last tensor takes the CPU 7 times as long.
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        if grad_clip < math.inf:
            gradient = gradient.clamp(-grad_clip, grad_clip)
        with torch.set_grad_enabled(differentiable):
            x = x.add(gradient, alpha=step_size).add_(noise, alpha=noise_std)
            if clamp:
                x.clamp_(-1, 1)
    return x if differentiable else x.detach()


@dataclass(frozen=True)
class Chain:
    """The settings of a Langevin chain: the numbers of `langevin`, and the start images.
    `guidance`: the weight of log q(y|x) in class-conditional chains of evaluation and pictures.
    """

    steps: int
    step_size: float = 1.0
    noise_std: float = 0.01
    grad_clip: float = math.inf
    clamp: bool = False
    start: Start = field(default_factory=UniformStart)
    guidance: float = 1.0

    @classmethod
    def of(cls, s: Namespace, start: Start | None = None) -> Chain:
        """Make the chain of the flags. `start`: the replay buffer's; None without a buffer."""
        return cls(
            steps=s.n_steps,
            step_size=s.sgld_lr,
            noise_std=s.sgld_std,
            grad_clip=math.inf if s.sgld_grad_clip is None else s.sgld_grad_clip,
            clamp=s.sgld_clamp,
            start=start or UniformStart(),
            guidance=s.guidance,
        )

    def climb(
        self,
        log_density: LogDensity,
        x: Tensor,
        generator: torch.Generator | None = None,
        *,
        differentiable: bool = False,
    ) -> Tensor:
        """Run `langevin` from x (N, ...)."""
        return langevin(
            log_density,
            x,
            steps=self.steps,
            step_size=self.step_size,
            noise_std=self.noise_std,
            grad_clip=self.grad_clip,
            clamp=self.clamp,
            generator=generator,
            differentiable=differentiable,
        )


class ReplayBuffer(nn.Module):
    """End points of past chains, where new chains start (persistent contrastive divergence).

    Slot y * (size / C) + r of `images` (size, *image_shape) belongs to class y. At first it holds
    an image that `start` draws for class y, by default U(-1, 1). A chain starts from its slot's
    image with probability 1 - `reinit_freq`, otherwise from a new draw of `start`. Slots are drawn
    without replacement: the chains of one draw write to different slots. `updates` counts the steps
    that were taken, and `began` (size,) is its value when the chain of a slot began. Process i of n
    (`part` = (i, n)) holds the i-th `shard` of images and `began`.

    Raises ValueError if size is no multiple of num_classes, or for more chains than slots.
    """

    images: Tensor
    began: Tensor
    updates: Tensor

    def __init__(
        self,
        size: int,
        image_shape: tuple[int, ...],
        reinit_freq: float,
        num_classes: int,
        start: Start | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        super().__init__()
        if size < 1 or size % num_classes:
            raise ValueError(f"a replay buffer of {size} is not divisible by {num_classes} classes")
        self.reinit_freq, self.num_classes = reinit_freq, num_classes
        self.start = UniformStart() if start is None else start
        self.size, self.image_shape, self.part = size, image_shape, part
        self.register_buffer("images", torch.empty(0))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("began", torch.zeros(0, dtype=torch.int64))
        self.fill()
        self.staged: list[tuple[Tensor, ...]] = []

    def fill(self, generator: torch.Generator | None = None) -> None:
        """Draw new start images for all slots. Every process draws all, and keeps its `shard`."""
        labels = torch.arange(self.size, device=self.images.device)
        labels //= self.size // self.num_classes
        like = self.images.new_empty(self.size, *self.image_shape)
        images = self.start_images(like, labels, generator)
        self.images = shard(images, self.num_classes, *self.part)
        self.began = self.updates.repeat(len(self.images))

    def draw(
        self, n: int, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return start images (n, ...) and their distinct slots (n,), of classes `labels` (n,)."""
        if labels is None:
            slots = self.random_slots(n, generator)
        else:
            slots = self.class_slots(labels, generator)
        stored = self.images[slots]
        new = self.start_images(stored, self.classes(slots), generator)
        restart = torch.rand(n, device=stored.device, generator=generator) < self.reinit_freq
        start = torch.where(restart[:, None, None, None], new, stored)
        return start.contiguous(memory_format=torch.channels_last), slots

    def start_images(
        self, like: Tensor, labels: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw start images like `like` (n, ...) for labels (n,). In a buffer of a single class
        `start` chooses the classes."""
        return self.start.draw(like, None if self.num_classes == 1 else labels, generator)

    def classes(self, slots: Tensor) -> Tensor:
        """Return the classes (n,) of slots (n,)."""
        return slots // (len(self.images) // self.num_classes)

    def random_slots(self, n: int, generator: torch.Generator | None) -> Tensor:
        size = len(self.images)
        if n > size:
            raise ValueError(f"{n} chains need {n} slots, but the replay buffer has {size}")
        return torch.randperm(size, device=self.images.device, generator=generator)[:n]

    def class_slots(self, labels: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return distinct slots (n,), slot i of class labels[i]: entry i of a random order of that
        class's slots."""
        per_class = len(self.images) // self.num_classes
        if len(labels) > per_class:
            raise ValueError(f"{len(labels)} chains exceed the {per_class} slots of a class")
        shape = (self.num_classes, per_class)
        order = torch.rand(shape, device=labels.device, generator=generator).argsort(1)
        return labels * per_class + order[labels, torch.arange(len(labels), device=labels.device)]

    def store(self, slots: Tensor, images: Tensor, skip: Tensor | None = None) -> None:
        """Write images (n, ...) to slots (n,), unless the flag `skip` () is set."""
        images = images.detach()
        if skip is not None:
            images = torch.where(skip, self.images[slots], images)
        self.images[slots] = images

    @torch.no_grad()
    def renew(self) -> int:
        """Restart the chains with a pixel that is not finite or beyond LARGEST_PIXEL. Return their
        number."""
        bad = (~(self.images.abs().amax((1, 2, 3)) <= LARGEST_PIXEL)).nonzero().flatten()
        self.images[bad] = self.start_images(self.images[bad], self.classes(bad))
        self.began[bad] = self.updates
        return len(bad)

    def restarted(self, slots: Tensor, start: Tensor) -> Tensor:
        """Return a mask (n,) bool of the chains that begin anew: their start image (n, ...) is not
        the image in their slot (n,)."""
        return (start != self.images[slots]).flatten(1).any(1)

    def stage(self, slots: Tensor, start: Tensor, images: Tensor) -> Tensor:
        """Hold the end points `images` of chains from `start` (n, ...) until `commit`, which drops
        those of a diverged step. Return the updates since each chain began, int64 (n,)."""
        began = torch.where(self.restarted(slots, start), self.updates, self.began[slots])
        self.staged.append((slots, images, began))
        return self.updates - began

    def commit(self, step: Step, skip: Tensor) -> None:
        for slots, images, began in self.staged:
            self.store(slots, images, skip)
            self.began[slots] = torch.where(skip, self.began[slots], began)
        self.staged.clear()
        self.updates += ~skip


def shard(images: Tensor, num_classes: int, part: int, parts: int) -> Tensor:
    """Return part number `part` of `parts` of a replay buffer's slots (S, ...): an equal share of
    every class, so again a replay buffer. S is a multiple of num_classes * parts."""
    per_class = len(images) // num_classes
    first, last = (per_class * i // parts for i in (part, part + 1))
    return images.unflatten(0, (num_classes, per_class))[:, first:last].flatten(0, 1).clone()


def from_shards(shards: Sequence[Tensor], num_classes: int) -> Tensor:
    """Join all `shard`s of a replay buffer, in order, into its slots (S, ...)."""
    return torch.cat([s.unflatten(0, (num_classes, -1)) for s in shards], 1).flatten(0, 1)


class _SGLD(nn.Module):
    """The base of both terms: chains from the replay buffer, and a loss of data and samples.
    `loss` and `l2`: see `divergence`; `statistics`: see `sampling_mode` and `scoring_mode`. Raises
    ValueError for an unknown name of either."""

    def __init__(
        self,
        buffer: ReplayBuffer,
        chain: Chain,
        *,
        loss: str = "cd",
        l2: float = 0.0,
        statistics: str = "jem",
    ) -> None:
        super().__init__()
        for name, names in ((loss, PX_LOSSES), (statistics, BN_CHAINS)):
            if name not in names:
                raise ValueError(f"unknown {name!r}: use one of {', '.join(names)}")
        self.memories = {"replay_buffer": buffer}  # no submodule: the Objective registers it
        self.chain, self.loss, self.l2, self.statistics = chain, loss, l2, statistics

    def sample(
        self, model: EnergyClassifier, n: int, labels: Tensor | None
    ) -> tuple[Tensor, Metrics]:
        """Run n chains up log q(x), or up log q(x, y) for labels y (n,), and stage the samples.
        Return them, and the metrics age, travel (L2 distance from the start) and clamped."""
        buffer = self.memories["replay_buffer"]
        start, slots = buffer.draw(n, labels)
        with sampling_mode(model, self.statistics):
            samples = self.chain.climb(
                model.log_px if labels is None else lambda x: model.log_pxy(x, labels), start
            )
        age = buffer.stage(slots, start, samples).float().mean()
        travel = (samples - start).flatten(1).norm(dim=1).mean()
        return samples, {"age": age, "travel": travel, "clamped": _clamped(samples)}

    def divergence(self, data: Tensor, samples: Tensor) -> tuple[Tensor, Metrics]:
        """Return the loss, and metrics, for log q + log Z of data (M,) and samples (n,); `loss` is

            cd:   mean log q(samples) - mean log q(data)
            bce:  mean softplus(-log q(data)) + mean softplus(log q(samples))

        The gradient of cd is that of the negative log-likelihood (HDGE, Eq. 4). bce classifies data
        against samples with log q as the logit (DAT, Wang et al. 2025), so log q estimates
        log p(data) - log p(sampler), not log p(data). Both losses add l2 * (mean log q(samples)^2 +
        mean log q(data)^2), IGEBM's regulariser, so that the two stay close (JEM's author: l2 .1).
        """
        penalty = self.l2 * (samples.square().mean() + data.square().mean()) if self.l2 else 0.0
        metrics = {
            "log_q_data": data.mean(),
            "log_q_samples": samples.mean(),
            "auc": _auc(data.detach(), samples.detach()),
        }
        if self.loss == "bce":
            loss = F.softplus(-data).mean() + F.softplus(samples).mean()
        else:
            loss = metrics["log_q_samples"] - metrics["log_q_data"]
        return loss + penalty, metrics


def _auc(data: Tensor, samples: Tensor) -> Tensor:
    """Return the share of pairs of a data image and a sample in which the data image has the higher
    log q; ties count half. At .5 samples are as likely as data, at 1 every sample is less likely.
    Each of several processes compares its own pairs, and the metric is the processes' mean."""
    difference = data[:, None] - samples
    return (difference > 0).float().mean() + 0.5 * (difference == 0).float().mean()


def _clamped(images: Tensor) -> Tensor:
    """Return the share of pixels at -1 or 1, or beyond."""
    return (images.detach().abs() >= 1).float().mean()


class MarginalSGLD(_SGLD):
    """Maximise log q(x) against `chains` samples, whose log q(x) the loss compares with the data's.
    Chains climb log q(x) or, if `class_conditional`, log q(x, y) for uniform y (JEM's
    --class_cond_p_x_sample: better samples, lower accuracy)."""

    def __init__(
        self,
        buffer: ReplayBuffer,
        chain: Chain,
        *,
        chains: int,
        class_conditional: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(buffer, chain, **options)
        self.chains, self.class_conditional = chains, class_conditional

    def forward(self, step: Step) -> tuple[Tensor, Metrics]:
        labels = None
        if self.class_conditional:
            classes = step.logits.shape[1]
            labels = torch.randint(classes, (self.chains,), device=step.logits.device)
        samples, chain_metrics = self.sample(step.model, self.chains, labels)
        with scoring_mode(step.model, self.statistics):
            log_q_samples = step.model.log_px(samples)
        loss, metrics = self.divergence(step.data_log_px(), log_q_samples)
        data = step.images if step.unlabelled is None else step.unlabelled
        return loss, {**metrics, **chain_metrics, "clamped_data": _clamped(data)}


class ConditionalSGLD(_SGLD):
    """Maximise log q(x|y) = log q(x, y) - log Z_y. For each image of the batch a chain climbs
    log q(x, y) with the image's label y. The loss compares log q(x, y) of data and samples: log Z_y
    cancels in the difference."""

    def forward(self, step: Step) -> tuple[Tensor, Metrics]:
        samples, chain_metrics = self.sample(step.model, len(step.labels), step.labels)
        with scoring_mode(step.model, self.statistics):
            log_q_samples = step.model.log_pxy(samples, step.labels)
        log_q_data = step.model.log_pxy_from(step.features, step.logits, step.labels)
        loss, metrics = self.divergence(log_q_data, log_q_samples)
        return loss, {**metrics, **chain_metrics, "clamped_data": _clamped(step.images)}


def pxsgld(build: Build) -> MarginalSGLD:
    s = build.settings
    return MarginalSGLD(
        **_arguments(build),
        chains=s.sgld_batch_size // distributed.size(),
        class_conditional=s.class_cond_p_x_sample,
    )


def pxysgld(build: Build) -> ConditionalSGLD:
    return ConditionalSGLD(**_arguments(build))


def _arguments(build: Build) -> dict[str, Any]:
    """Return the arguments that both terms have; the terms share one replay buffer."""
    s, classes = build.settings, build.num_classes

    def new_buffer() -> ReplayBuffer:
        shape, part = (3, s.image_size, s.image_size), (distributed.rank(), distributed.size())
        start = new_start(s.chain_start, classes)
        return ReplayBuffer(s.buffer_size, shape, s.reinit_freq, classes, start, part)

    with fits(f"--buffer_size {s.buffer_size}"):
        buffer = build.shared("replay_buffer", new_buffer)
    return {
        "buffer": buffer,
        "chain": Chain.of(s, buffer.start),
        "loss": s.px_loss,
        "l2": s.sgld_l2,
        "statistics": s.bn_chains,
    }
