"""Samples of a model, by SGLD."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from losses import ReplayBuffer, langevin
from models import EnergyClassifier, sampling_mode


class Sampler:
    """SGLD chains for pictures: from a generator of their own, and nothing is stored, so that
    drawing them leaves a training run as it was.

    Chains start from `buffer`'s slots as in training, or from U(-1, 1) where it is None.
    """

    def __init__(
        self,
        model: EnergyClassifier,
        buffer: ReplayBuffer | None,
        *,
        steps: int,
        step_size: float,
        noise_std: float,
        seed: int,
    ) -> None:
        self.model, self.buffer = model, buffer
        self.device = next(model.parameters()).device
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.sgld = {"steps": steps, "step_size": step_size, "noise_std": noise_std}

    def start(self, n: int, label: int | None = None) -> Tensor:
        """(n, 3, 32, 32), from the slots of class `label` where it is given."""
        if self.buffer is None:
            x = torch.empty(n, 3, 32, 32, device=self.device)
            return x.uniform_(-1, 1, generator=self.generator)
        labels = None if label is None else torch.full((n,), label, device=self.device)
        return self.buffer.draw(n, labels, self.generator)[0]

    def climb(self, log_density: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        with sampling_mode(self.model):
            return langevin(log_density, x, generator=self.generator, **self.sgld)  # type: ignore[arg-type]

    def unconditional(self, n: int) -> Tensor:
        """n chains up log q(x)."""
        return self.climb(self.model.log_px, self.start(n))

    def conditional(
        self,
        num_classes: int,
        per_class: int,
        log_density: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """per_class chains for each class in turn, up log_density(x, y), by default f(x)[y]."""
        density = log_density or self.model.log_pxy
        labels = torch.arange(num_classes, device=self.device).repeat_interleave(per_class)
        x = torch.cat([self.start(per_class, label) for label in range(num_classes)])
        return self.climb(lambda x: density(x, labels), x)
