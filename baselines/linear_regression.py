"""Multinomial logistic regression on fixed features: what a linear probe fits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def fit_linear(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    l2: float,
    max_iter: int = 200,
    start: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, int]:
    """The (weight (C, D), bias (C,)) that minimise, with L-BFGS in float64 from zero or `start`,

        mean_n -log softmax(W x_n + b)[y_n] + l2/2 ||W||^2

    and the number of iterations. features (N, D), labels int64 (N,). The problem is convex and
    the bias is not penalised; the same input gives the same bits on one device.
    """
    x = features.double()
    if start is None:
        start = x.new_zeros(num_classes, x.shape[1]), x.new_zeros(num_classes)
    weight, bias = (part.double().clone().requires_grad_(True) for part in start)
    search = torch.optim.LBFGS(
        [weight, bias],
        max_iter=max_iter,
        history_size=20,
        tolerance_grad=1e-6,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        search.zero_grad()
        loss = F.cross_entropy(F.linear(x, weight, bias), labels) + l2 / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        search.step(objective)
    iterations = search.state_dict()["state"][0]["n_iter"]
    return weight.detach(), bias.detach(), iterations


def standardisation(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each feature (N, D), float64 (D,) each; a constant one's
    deviation is taken as 1."""
    std, mean = torch.std_mean(features.double(), dim=0, correction=0)
    return mean, torch.where(std > 1e-12, std, 1.0)


def unstandardised(
    weight: Tensor, bias: Tensor, mean: Tensor, std: Tensor
) -> tuple[Tensor, Tensor]:
    """The head on features x that equals the head (weight, bias) on (x - mean) / std."""
    weight = weight / std
    return weight, bias - weight @ mean
