"""Frozen features of a data set's images, computed once, and logistic regression on them."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import data
import models
from training.setup import held_out

BATCH = 200  # images; as in evaluation, and results do not depend on it
TRAIN_NOISE = 1  # seed of the training images' noise: evaluation's is 0


class Features(NamedTuple):
    """The backbone's features of a split's images, float32 (n, D), and labels int64 (n,)."""

    x: Tensor
    y: Tensor


@torch.no_grad()
def features_of(model: models.EnergyClassifier, batches: Any) -> Features:
    """Compute the features in eval mode, and restore the mode."""
    with models.eval_mode(model):
        parts = [(model.features(images), labels) for images, labels in batches]
    x, y = (torch.cat(part) for part in zip(*parts, strict=True))
    return Features(x, y)


def augmented(split: data.Split, index: Tensor, *, copies: int, sigma: float, flip: bool) -> Any:
    """Yield `copies` random crops, mirrored, of every chosen image: batches (images, labels)."""
    generator = torch.Generator(index.device).manual_seed(TRAIN_NOISE)
    for _ in range(copies):
        for part in index.split(BATCH):
            images = data.augment(split.images, part, sigma=sigma, flip=flip, generator=generator)
            yield images, split.labels[part]


def features_of_splits(
    model: models.EnergyClassifier, dataset: data.DataSet, s: Namespace
) -> dict[str, Features]:
    """Return the features of "train", and of "valid" and "test" where there are images.

    Images have noise of width --sigma. With --augmented, features of so many random crops of each
    training image take the place of the image's own.

    Raises DataError for an --n_valid that leaves no image.
    """
    index, splits = held_out(s, dataset)
    index = index.to(dataset.train.images.device)

    def plain(split: data.Split, seed: int = 0) -> Any:
        return data.evaluation_batches(split, batch_size=BATCH, sigma=s.sigma, seed=seed)

    train = plain(dataset.train.take(index), TRAIN_NOISE)
    if s.augmented:
        train = augmented(
            dataset.train, index, copies=s.augmented, sigma=s.sigma, flip=dataset.flips
        )
    batches = {"train": train, **{name: plain(split) for name, split in splits.items()}}
    return {name: features_of(model, found) for name, found in batches.items()}


def fitted_heads(
    train: Features, num_classes: int, penalties: Sequence[float], max_iter: int
) -> Iterator[tuple[float, nn.Linear, int]]:
    """Fit a head for each penalty l2, the strongest first, each from where the last one ended.

    Yields (l2, head, iterations). The head is fitted to z = (x - mean) / std, feature by feature (a
    constant one is divided by 1), and works on x itself.
    """
    std, mean = torch.std_mean(train.x.double(), dim=0, correction=0)
    std = torch.where(std > 1e-12, std, 1.0)
    z, start = (train.x.double() - mean) / std, None
    for l2 in sorted(penalties, reverse=True):
        weight, bias, took = fit_linear(
            z, train.y, num_classes, l2=l2, max_iter=max_iter, start=start
        )
        start = weight, bias
        head = nn.Linear(z.shape[1], num_classes, device=z.device).requires_grad_(False)
        head.weight.copy_(weight / std)
        head.bias.copy_(bias - weight / std @ mean)
        yield l2, head, took


def fit_linear(
    x: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    l2: float,
    max_iter: int = 200,
    start: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, int]:
    """Return the (weight (C, D), bias (C,)) that minimise, with L-BFGS from zero or `start`,

        mean_n -log softmax(W x_n + b)[y_n] + l2/2 ||W||^2

    and the number of iterations. x float64 (N, D), labels int64 (N,). The problem is convex and the
    bias is not penalised; the same input gives the same bits on one device.
    """
    if start is None:
        start = x.new_zeros(num_classes, x.shape[1]), x.new_zeros(num_classes)
    weight, bias = (part.clone().requires_grad_(True) for part in start)
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
    return weight.detach(), bias.detach(), search.state_dict()["state"][0]["n_iter"]
