"""The two training steps, ready to be called: this project's and the straightforward one."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import data
import losses
import models
import train_wrn
from benchmarks import pil_images, plain_network, straightforward
from benchmarks.timing import Place, malloc_as_found, tf32
from evaluation.cost import step_flops
from training.divergence import Guard
from training.state import Run

IMAGES = 10_000  # that the batches are drawn from
PROJECT, STRAIGHT, STRAIGHT_TF32 = "project", "straightforward", "straightforward, TF32"


@dataclass
class Contender:
    """A training step: `learn` from the batch that `draw` makes. It takes `flops` in numbers of
    `format`; `check` raises if a step was skipped; `parts` are for timing.watched; `close` ends
    the processes that make its batches."""

    draw: Callable[[], Any]
    learn: Callable[[Any], object]
    flops: float
    format: str
    check: Callable[[], object]
    close: Callable[[], object] = lambda: None
    parts: list[Place] = field(default_factory=list)

    def step(self) -> None:
        self.learn(self.draw())


@dataclass
class Networks:
    """The made-up images (n, 32, 32, 3), uint8 on the host, and a network for each contender and
    number of classes: timed with one objective after the other, so that it is compiled once."""

    b: Namespace
    device: torch.device
    images: Tensor
    project: dict[int, models.EnergyClassifier] = field(default_factory=dict)
    plain: dict[int, plain_network.Classifier] = field(default_factory=dict)

    @classmethod
    def of(cls, b: Namespace, device: torch.device) -> Networks:
        torch.manual_seed(b.seed)
        return cls(b, device, torch.randint(256, (IMAGES, 32, 32, 3), dtype=torch.uint8))

    def labels(self, classes: int) -> Tensor:
        return torch.arange(len(self.images)) % classes

    def forward_flops(self, classes: int) -> int:
        """Of one image."""
        size = {"depth": self.b.depth, "width": self.b.width}
        return models.forward_flops(models.build(**size, num_classes=classes))


def contenders(
    networks: Networks, s: Namespace, classes: int, *, both: bool = False
) -> dict[str, Contender]:
    """By name. `both`: on a GPU the straightforward step in TF32, too."""
    found = {PROJECT: project(networks, s, classes)}
    if networks.b.straightforward:
        found[STRAIGHT] = plain(networks, s, classes)
        if both and networks.device.type == "cuda":
            found[STRAIGHT_TF32] = plain(networks, s, classes, in_tf32=True)
    return found


def project(networks: Networks, s: Namespace, classes: int) -> Contender:
    """train_wrn.py's step, with its batches made on the device and its guard."""
    device = networks.device
    if classes not in networks.project:
        networks.project[classes] = train_wrn.build_model(s, classes, device)
    model = networks.project[classes].train()
    objective = losses.build_objective(s, classes).to(device)
    optimizer = train_wrn.build_optimizer(s, model, objective)
    run, guard = Run(s, classes, model, objective, optimizer), Guard(device)
    split = data.Split(networks.images, networks.labels(classes)).to(device)
    every = torch.arange(len(split.labels), device=device)
    batches = data.TrainingBatches(
        split, every, every, s.batch_size, s.seed, s.sigma, flip=True, unlabelled=False
    )

    def learn(batch: tuple[Tensor, Tensor, Tensor | None]) -> None:
        train_wrn.train_step(run, guard, batch, run.progress.step)
        run.progress.step += 1

    contender = Contender(
        draw=lambda: batches(run.progress.step),
        learn=learn,
        flops=step_flops(networks.forward_flops(classes), s),
        format="bf16" if model.amp else "TF32" if device.type == "cuda" else "float32",
        check=lambda: guard.raise_if_diverged("nothing is saved here"),
    )
    contender.parts += [
        (contender, "draw", "data"),
        (model, "features", "forward passes"),
        (torch.Tensor, "backward", "backward pass"),
        (optimizer, "step", "optimiser"),
    ]
    if s.pxycontrast > 0:
        contender.parts.append((objective.terms["pxycontrast"], "forward", "contrastive term"))
        contender.parts.append((objective.memories["queue"], "commit", "contrastive term"))
    if s.pxsgld > 0:
        contender.parts.append((objective.terms["pxsgld"], "sample", "sampling"))
        contender.parts.append((objective.memories["replay_buffer"], "commit", "sampling"))
    return contender


def plain(networks: Networks, s: Namespace, classes: int, *, in_tf32: bool = False) -> Contender:
    """The straightforward step, with its batches made by PIL; log q(x) has a batch of its own."""
    device = networks.device
    if classes not in networks.plain:
        model = plain_network.Classifier(s.depth, s.width, classes)
        networks.plain[classes] = model.to(device)
    state = straightforward.build(s, networks.plain[classes], classes, device)
    dataset = pil_images.Images(
        networks.images.numpy(),
        networks.labels(classes).numpy(),
        pil_images.pipeline(sigma=s.sigma, flip=True),
    )
    streams = 2 if s.pxsgld > 0 else 1
    loaders = [
        pil_images.endless(dataset, s.batch_size, networks.b.workers) for _ in range(streams)
    ]

    def learn(batches: list[list[Tensor]]) -> None:
        (images, labels), *second = batches
        with tf32(in_tf32), malloc_as_found(device):
            straightforward.train_step(state, images, labels, second[0][0] if second else None)

    def close() -> None:
        """Left to the garbage collector, the loaders' queues would go first, and each process would
        be waited for in vain, 5 seconds long."""
        for loader in loaders:
            loader.close()

    contender = Contender(
        draw=lambda: [next(loader) for loader in loaders],
        learn=learn,
        flops=straightforward.step_flops(networks.forward_flops(classes), s),
        format="TF32" if in_tf32 else "float32",
        check=lambda: None,  # it raises by itself
        close=close,
    )
    contender.parts += [
        (contender, "draw", "data"),
        (state.model, "forward", "forward passes"),
        (straightforward, "sample", "sampling"),
        (straightforward, "contrastive", "contrastive term"),
        (straightforward, "enqueue", "contrastive term"),
        (torch.Tensor, "backward", "backward pass"),
        (state.optimizer, "step", "optimiser"),
    ]
    return contender
