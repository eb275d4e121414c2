"""The objective of a program of this folder, its batches, and one update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from losses import Metrics
from training.divergence import Guard
from training.state import Run


class Objective(nn.Module):
    """The loss of a program. A subclass has `terms` and `forward`.

    terms: names of the loss's parts: the columns '<term>/loss' of progress.csv.
    """

    terms: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.memories = nn.ModuleDict()  # no queue, no replay buffer: checkpoints look for them

    def classifies(self, epoch: int) -> bool:
        """Return whether this epoch trains the class head. Otherwise accuracy has no meaning."""
        return True

    def forward(
        self, model: Any, images: Tensor, labels: Tensor, epoch: int
    ) -> tuple[Tensor, Metrics]:
        """(loss, metrics) of a batch, model in train mode; nothing here waits for the device.

        metrics: scalars on the device: '<term>/loss' and, where it classifies, 'accuracy'; the
        same names in all steps of an epoch.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Batches:
    """`make(step)` -> images float32 (n, 3, H, W) and labels int64 (n,) of a training step."""

    make: Callable[[int], tuple[Tensor, Tensor]]
    steps_per_epoch: int

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        return self.make(step)


def train_step(
    run: Run, guard: Guard, images: Tensor, labels: Tensor, *, step: int, epoch: int
) -> Metrics:
    """Take one update. Return metrics, scalars on the device, without waiting for it."""
    loss, metrics = run.objective(run.model, images, labels, epoch)
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    groups = run.optimizer.param_groups
    gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
    grad_norm = torch.nn.utils.get_total_norm(gradients)
    kept = {name: value.detach() for name, value in metrics.items()}
    skip = guard.check(loss, grad_norm, step, kept)
    run.optimizer.found_inf = skip.float()  # type: ignore[attr-defined]  # as GradScaler sets it
    run.optimizer.step()
    return {**kept, "loss": loss.detach(), "grad_norm": grad_norm}
