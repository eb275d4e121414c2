"""Frozen features of a data set's images, computed once, and logistic regression on them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import data
import models

BATCH = 200  # images; as in evaluation, and results do not depend on it
TRAIN_NOISE = 1  # seed of the training images' noise: evaluation's is 0


class Features(NamedTuple):
    """What the backbone makes of a split: float32 (n, D), and labels int64 (n,)."""

    x: Tensor
    y: Tensor


@torch.no_grad()
def features_of(model: models.EnergyClassifier, batches: Any) -> Features:
    """In eval mode, which is given back."""
    with models.eval_mode(model):
        parts = [(model.features(images), labels) for images, labels in batches]
    x, y = (torch.cat(part) for part in zip(*parts, strict=True))
    return Features(x, y)


def augmented(split: data.Split, index: Tensor, *, copies: int, sigma: float, flip: bool) -> Any:
    """`copies` random crops, mirrored, of every chosen image, in batches of (images, labels)."""
    generator = torch.Generator(index.device).manual_seed(TRAIN_NOISE)
    for _ in range(copies):
        for part in index.split(BATCH):
            images = data.augment(split.images, part, sigma=sigma, flip=flip, generator=generator)
            yield images, split.labels[part]


def features_of_splits(
    model: models.EnergyClassifier,
    dataset: data.DataSet,
    *,
    n_valid: int | None,
    sigma: float,
    copies: int = 0,
) -> dict[str, Features]:
    """Of the training images, and of valid and test where there are images, with noise `sigma`.

    n_valid: as --n_valid, None for its default. copies: 0 for the training images as they are,
    else random crops of each. Raises DataError for an `n_valid` that leaves no image.
    """
    train, device = dataset.train, dataset.train.images.device
    index, valid = (part.to(device) for part in data.hold_out(dataset, n_valid))

    def plain(split: data.Split, seed: int) -> Any:
        return data.evaluation_batches(split, batch_size=BATCH, sigma=sigma, seed=seed)

    if copies:
        batches = augmented(train, index, copies=copies, sigma=sigma, flip=dataset.flips)
    else:
        batches = plain(train.take(index), TRAIN_NOISE)
    found = {"train": features_of(model, batches)}
    splits = {"valid": train.take(valid), "test": dataset.test}
    for name, split in splits.items():
        if len(split.labels):
            found[name] = features_of(model, plain(split, 0))
    return found


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
