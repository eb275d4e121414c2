"""Features of a frozen backbone for a data set's images, computed once."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

import data
import models

BATCH = 200  # images; as in evaluation, and results do not depend on it
TRAIN_NOISE = 1  # seed of the training images' noise: evaluation's is 0


class Features(NamedTuple):
    """The features of a split, float32 (n, D), and its labels, int64 (n,)."""

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
    """Compute the features of train, and of valid and test if they have images, with noise `sigma`.

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
