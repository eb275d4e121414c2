"""`--pxsgld` and `--pxysgld`: maximise log q(x) or log q(x|y) against SGLD samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from losses.objective import Metrics, Step
from models import EnergyClassifier, batch_statistics_only, sampling_mode

LARGEST_PIXEL = 10.0  # of a chain; images are in [-1, 1]

LogDensity = Callable[[Tensor], Tensor]


def langevin(
    log_density: LogDensity,
    x: Tensor,
    *,
    steps: int,
    step_size: float,
    noise_std: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Stochastic gradient Langevin dynamics.

        x <- x + step_size * d/dx log q(x) + noise_std * N(0, I)

    JEM's sampler: two free numbers in place of the step alpha/2 and variance alpha of HDGE's
    Eq. 5. `log_density` maps (N, ...) to (N,); each image is a chain of its own. Returns the end
    points, without gradient; `x` itself is left as it was.
    """
    x = x.detach()
    for _ in range(steps):
        x.requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(log_density(x).sum(), x)
        # Not in x's memory format: to fill a channels_last tensor takes the CPU 7 times as long.
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        x = x.detach().add(gradient, alpha=step_size).add_(noise, alpha=noise_std)
    return x


class ReplayBuffer(nn.Module):
    """The end points of past chains, from which new ones start (persistent contrastive divergence).

    `images` (size, *image_shape) starts as U(-1, 1); slot y * (size / C) + r belongs to class y.
    A chain starts from a slot with probability 1 - `reinit_freq`, else from U(-1, 1). Slots are
    drawn without replacement: two chains of one draw never write to one slot.

    Raises ValueError if size is no multiple of num_classes, or more chains than slots are drawn.
    """

    images: Tensor

    def __init__(
        self, size: int, image_shape: tuple[int, ...], reinit_freq: float, num_classes: int
    ) -> None:
        super().__init__()
        if size < 1 or size % num_classes:
            raise ValueError(f"a replay buffer of {size} is not divisible by {num_classes} classes")
        self.register_buffer("images", torch.empty(size, *image_shape).uniform_(-1, 1))
        self.reinit_freq, self.num_classes = reinit_freq, num_classes
        self.staged: list[tuple[Tensor, Tensor]] = []

    def draw(
        self, n: int, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """(start images (n, ...), their slots (n,)); with labels (n,) from their classes' slots."""
        slots = (
            self.free_slots(n, generator) if labels is None else self.class_slots(labels, generator)
        )
        kept = self.images[slots]
        fresh = torch.empty_like(kept).uniform_(-1, 1, generator=generator)
        restart = torch.rand(n, device=kept.device, generator=generator) < self.reinit_freq
        start = torch.where(restart[:, None, None, None], fresh, kept)
        return start.contiguous(memory_format=torch.channels_last), slots

    def free_slots(self, n: int, generator: torch.Generator | None) -> Tensor:
        size = len(self.images)
        if n > size:
            raise ValueError(f"{n} chains need {n} slots, but the replay buffer has {size}")
        return torch.randperm(size, device=self.images.device, generator=generator)[:n]

    def class_slots(self, labels: Tensor, generator: torch.Generator | None) -> Tensor:
        """Distinct slots, each of its label's class: chain i takes entry i of a random order of
        that class's slots."""
        per_class = len(self.images) // self.num_classes
        if len(labels) > per_class:
            raise ValueError(f"{len(labels)} chains may meet {per_class} slots of one class")
        shape = (self.num_classes, per_class)
        order = torch.rand(shape, device=labels.device, generator=generator).argsort(1)
        return labels * per_class + order[labels, torch.arange(len(labels), device=labels.device)]

    def store(self, slots: Tensor, images: Tensor, skip: Tensor | None = None) -> None:
        """Put images (n, ...) back into slots (n,); where the flag `skip` is set, none."""
        images = images.detach()
        if skip is not None:
            images = torch.where(skip, self.images[slots], images)
        self.images[slots] = images

    @torch.no_grad()
    def renew(self) -> int:
        """Chains that blew up, with a pixel that is not finite or beyond 10 times the images'
        range, begin anew from U(-1, 1). Their number."""
        bad = ~(self.images.abs().amax((1, 2, 3)) <= LARGEST_PIXEL)
        self.images[bad] = torch.empty_like(self.images[bad]).uniform_(-1, 1)
        return int(bad.sum())

    def stage(self, slots: Tensor, images: Tensor) -> None:
        """Remember samples to store once the step is known to be good: see `commit`."""
        self.staged.append((slots, images))

    def commit(self, step: Step, skip: Tensor) -> None:
        for slots, images in self.staged:
            self.store(slots, images, skip)
        self.staged.clear()


def shard(images: Tensor, num_classes: int, part: int, parts: int) -> Tensor:
    """The slots that one of several processes keeps, of a replay buffer (S, ...): of each class an
    equal part, so that it is a replay buffer again. S is a multiple of num_classes * parts."""
    per_class = len(images) // num_classes
    first, last = (per_class * i // parts for i in (part, part + 1))
    return images.unflatten(0, (num_classes, per_class))[:, first:last].flatten(0, 1).clone()


def from_shards(shards: Sequence[Tensor], num_classes: int) -> Tensor:
    """The replay buffer whose `shard`s these are, in order."""
    return torch.cat([s.unflatten(0, (num_classes, -1)) for s in shards], 1).flatten(0, 1)


class _SGLD(nn.Module):
    """What both terms share: chains from the replay buffer, and contrastive divergence."""

    def __init__(
        self,
        buffer: ReplayBuffer,
        *,
        steps: int,
        step_size: float,
        noise_std: float,
        l2: float = 0.0,
    ) -> None:
        super().__init__()
        self.memories = {"replay_buffer": buffer}  # a dict, so that the Objective registers it
        self.steps, self.step_size, self.noise_std, self.l2 = steps, step_size, noise_std, l2

    def sample(self, model: EnergyClassifier, n: int, labels: Tensor | None) -> Tensor:
        """n chains up log q(x), or up f(x)[y] for labels y (n,); stored when the step commits."""
        buffer = self.memories["replay_buffer"]
        start, slots = buffer.draw(n, labels)
        with sampling_mode(model):
            samples = langevin(
                model.log_px if labels is None else lambda x: model.log_pxy(x, labels),
                start,
                steps=self.steps,
                step_size=self.step_size,
                noise_std=self.noise_std,
            )
        buffer.stage(slots, samples)
        return samples

    def divergence(self, data: Tensor, samples: Tensor) -> tuple[Tensor, Metrics]:
        """mean log q(samples) - mean log q(data): its gradient is that of the negative
        log-likelihood (HDGE, Eq. 4); plus l2 * (mean log q(samples)^2 + mean log q(data)^2),
        which keeps the two from running apart (IGEBM's regulariser; JEM's author advises .1)."""
        penalty = self.l2 * (samples.square().mean() + data.square().mean()) if self.l2 else 0.0
        data, samples = data.mean(), samples.mean()
        return samples - data + penalty, {"log_q_data": data, "log_q_samples": samples}


class MarginalSGLD(_SGLD):
    """log q(x): `chains` chains climb log q(x), or, `class_conditional`, f(x)[y] for uniform y
    (JEM's --class_cond_p_x_sample: better samples, lower accuracy); the loss is log q(x) in both.
    """

    def __init__(
        self,
        buffer: ReplayBuffer,
        *,
        chains: int,
        steps: int,
        step_size: float,
        noise_std: float,
        l2: float = 0.0,
        class_conditional: bool = False,
    ) -> None:
        super().__init__(buffer, steps=steps, step_size=step_size, noise_std=noise_std, l2=l2)
        self.chains, self.class_conditional = chains, class_conditional

    def forward(self, step: Step) -> tuple[Tensor, Metrics]:
        labels = None
        if self.class_conditional:
            classes = step.logits.shape[1]
            labels = torch.randint(classes, (self.chains,), device=step.logits.device)
        samples = self.sample(step.model, self.chains, labels)
        with batch_statistics_only(step.model):
            log_q_samples = step.model.log_px(samples)
        return self.divergence(step.data_log_px(), log_q_samples)


class ConditionalSGLD(_SGLD):
    """log q(x|y): one chain an image of the batch climbs f(x)[y] for the image's own label, and
    data and samples are scored by f(x)[y]; log Z_y cancels in the gradient's two halves."""

    def forward(self, step: Step) -> tuple[Tensor, Metrics]:
        samples = self.sample(step.model, len(step.labels), step.labels)
        with batch_statistics_only(step.model):
            log_q_samples = step.model.log_pxy(samples, step.labels)
        return self.divergence(step.logits.gather(1, step.labels[:, None]), log_q_samples)
