"""Projected gradient descent, the attack. Images x01 are `(N, 3, H, W)` in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from evaluation import NotFinite

Classifier = Callable[[Tensor], Tensor]  # x01 (N, 3, H, W) -> logits (N, C)

DISTANCES = ("Linf", "L2")
ROUNDING = 1e-6  # what float32 pixels may add to a perturbation of size eps


def pgd(
    classify: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    distance: str,
    eps: float,
    steps: int = 40,
    step: float | None = None,
    random_init: bool = False,
    generator: torch.Generator | None = None,
    check: bool = True,
) -> Tensor:
    """Return adversarial images for x01 `x` and labels `y`, by projected gradient ascent on `loss`.

        Linf: x' <- P(x' + step * sign(g))        L2: x' <- P(x' + step * g / ||g||_2)

    P projects onto the ball of radius eps around x, then onto [0, 1]; g is 0 where the gradient
    is. `step` is 2.5 eps / steps unless given. `random_init` starts uniformly in the ball, with
    `generator` on x's device, else the attack starts at x. The last iterate is returned; eps = 0
    returns x. Madry et al., "Towards deep learning models resistant to adversarial attacks" (2018).

    Raises AssertionError, with the numbers, if an image leaves the ball by more than 1e-6 or
    [0, 1] at all, NotFinite, and ValueError for an unknown distance, eps < 0 or steps < 1.
    `check=False` leaves the first two out: they wait for the device, which a training step must
    not.
    """
    if distance not in DISTANCES:
        raise ValueError(f"distance {distance!r} is unknown: take Linf or L2")
    if eps < 0 or steps < 1:
        raise ValueError(f"eps {eps} and {steps} steps: eps must be at least 0, steps at least 1")
    x = x.detach()
    if eps == 0 or len(x) == 0:
        return x
    step = 2.5 * eps / steps if step is None else step
    ascent, project = (torch.sign, _project_linf) if distance == "Linf" else (_unit, _project_l2)
    adversarial = x.clone()
    if random_init:
        adversarial = project(x, x + _random_offset(x, distance, eps, generator), eps)
    for _ in range(steps):
        adversarial.requires_grad_(True)
        with torch.enable_grad():
            # a sum, not a mean: no image's gradient depends on how many others there are
            total = loss(classify(adversarial), y).sum()
        (gradient,) = torch.autograd.grad(total, adversarial)
        adversarial = project(x, adversarial.detach() + step * ascent(gradient), eps)
    if check:
        check_perturbation(x, adversarial, distance, eps)
    return adversarial


def loss(logits: Tensor, y: Tensor) -> Tensor:
    """Return log sum over c != y of e^f_c, minus f_y: (N,) of logits f (N, C) and labels y (N,).

    Its gradient is that of cross-entropy, divided by 1 - q(y|x), which changes no direction.
    Cross-entropy itself would not do: in float32 the label's part of its gradient is lost once
    1 - q(y|x) nears 6e-8, and all of it where f_y leads by 100, so that a confident model would
    seem robust.
    """
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.logsumexp(1) - logits.gather(1, y[:, None]).squeeze(1)


def _unit(gradient: Tensor) -> Tensor:
    """Divide every image's gradient by its L2 norm; 0 stays 0."""
    # Where the classifier is sure, the gradient is so small that its square is 0 in float32.
    largest = _per_image(gradient.flatten(1).abs().amax(1))
    gradient = gradient / largest.clamp_min(torch.finfo(gradient.dtype).tiny)
    return gradient / _per_image(gradient.flatten(1).norm(dim=1)).clamp_min(1)


def _project_linf(x: Tensor, moved: Tensor, eps: float) -> Tensor:
    return torch.clamp(moved, x - eps, x + eps).clamp(0, 1)


def _project_l2(x: Tensor, moved: Tensor, eps: float) -> Tensor:
    """Clipping to [0, 1] comes last and keeps an image in the ball, since x lies in [0, 1]."""
    offset = moved - x
    shrink = (eps / _per_image(offset.flatten(1).norm(dim=1))).clamp(max=1)
    return (x + shrink * offset).clamp(0, 1)


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _random_offset(
    x: Tensor, distance: str, eps: float, generator: torch.Generator | None
) -> Tensor:
    """Draw uniformly from the ball of radius eps."""
    if distance == "Linf":
        return torch.empty_like(x).uniform_(-eps, eps, generator=generator)
    direction = _unit(torch.empty_like(x).normal_(generator=generator))
    # a ball of radius r in D dimensions has a volume proportional to r^D
    radius = torch.empty_like(x[:, 0, 0, 0]).uniform_(generator=generator) ** (1 / x[0].numel())
    return eps * _per_image(radius) * direction


@torch.no_grad()
def check_perturbation(x: Tensor, adversarial: Tensor, distance: str, eps: float) -> None:
    """Raise NotFinite, or AssertionError unless every image is within eps (+ 1e-6) of x and within
    [0, 1]."""
    offset = (adversarial.double() - x.double()).flatten(1)
    size = offset.abs().amax(1) if distance == "Linf" else offset.norm(dim=1)
    numbers = torch.stack([size.max(), adversarial.min().double(), adversarial.max().double()])
    worst, low, high = numbers.tolist()
    if not math.isfinite(worst + low + high):
        raise NotFinite("an adversarial image is not finite")
    if not (worst <= eps + ROUNDING and low >= 0 and high <= 1):
        raise AssertionError(
            f"an adversarial image is {worst:.7g} in {distance} from its original, {eps:.7g} is "
            f"allowed, and pixels are within [{low:.7g}, {high:.7g}], [0, 1] is allowed"
        )
