"""Distances between images, and between features of images: nearest neighbours, variety, and the
precision and recall of samples.

Images are uint8 (N, H, W, 3); a distance between two is the L2 norm over all pixels, which are in
[0, 1], as those of the radii of attacks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LARGEST = 2**24  # distances that exist at once: 64 MiB in float32
PAIRED = 1000  # images of a class whose pairs `variety` takes


def nearest(images: Tensor, bank: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """Find the k-th nearest image of `bank` (M, H, W, 3) for each of `images` (N, H, W, 3):
    distances float32 (N,) and indices int64 (N,). An image in the bank is its own first.

    Candidates are ranked by |b|^2/2 - x.b, a matrix product; the distance is that of the
    difference: of a copy exactly 0. M is k at least.
    """
    size, step = max(1, LARGEST // bank[0].numel()), max(1, LARGEST // len(bank))
    distances, indices = [], []
    for x in map(_pixels, images.split(step)):
        # Part by part: float32 takes four times the memory of uint8.
        parts = map(_pixels, bank.split(size))
        rank = torch.cat([torch.addmm(b.square().sum(1) / 2, x, b.T, alpha=-1) for b in parts], 1)
        index = rank.topk(k, dim=1, largest=False).indices
        near = _pixels(bank[index.flatten()]).unflatten(0, index.shape)
        distance, order = (x[:, None] - near).norm(dim=2).sort(dim=1, stable=True)
        distances.append(distance[:, -1])
        indices.append(index.gather(1, order)[:, -1])
    return torch.cat(distances), torch.cat(indices)


def variety(images: Tensor) -> float | None:
    """Return the mean distance of pairs of the first PAIRED images; None for fewer than two."""
    if len(images) < 2:
        return None
    return float(torch.pdist(_pixels(images[:PAIRED])).double().mean())


def compare_with_training(
    samples: Tensor, starts: Tensor, labels: Tensor, data: Tensor, data_labels: Tensor
) -> tuple[dict[str, Any], Tensor]:
    """Measure how far samples are from the training images of their class and from each other.

    samples and starts uint8 (N, H, W, 3) with labels (N,), data (M, H, W, 3) with labels (M,); all
    labels 0 compare without classes. Returns the index (N,) of each sample's nearest training image
    of its class, and

        nearest: mean distance to the nearest training image of the class: of `samples`, of their
                 `starts`, and of `data`: of each class as many training images as samples (or
                 all), evenly spaced, to the others; and the first over the other two
        variety: mean distance within a class, averaged over the classes: of the same three, and the
                 first over the last; None without two samples of a class

    Raises ValueError for a class with fewer than 2 training images.
    """
    index = torch.zeros(len(samples), dtype=torch.int64, device=data.device)
    far: dict[str, list[Tensor]] = {"samples": [], "starts": [], "data": []}
    apart: dict[str, list[float]] = {name: [] for name in far}
    for y in labels.unique().tolist():
        mine, theirs = ((each == y).nonzero().flatten() for each in (labels, data_labels))
        if len(theirs) < 2:
            raise ValueError(f"class {y} has {len(theirs)} training images: 2 are needed")
        bank, n = data[theirs], min(len(mine), len(theirs))
        chosen = bank[torch.arange(n, device=data.device) * len(theirs) // n]
        sets = {"samples": samples[mine], "starts": starts[mine], "data": chosen}
        for name, images in sets.items():
            distance, at = nearest(images, bank, 2 if name == "data" else 1)
            far[name].append(distance)
            if name == "samples":
                index[mine] = theirs[at]
            if (spread := variety(images)) is not None:
                apart[name].append(spread)
    near: dict[str, Any] = {n: float(torch.cat(parts).double().mean()) for n, parts in far.items()}
    vary: dict[str, Any] = {n: sum(a) / len(a) if a else None for n, a in apart.items()}
    near["samples_over_starts"] = _ratio(near["samples"], near["starts"])
    near["samples_over_data"] = _ratio(near["samples"], near["data"])
    vary["samples_over_data"] = _ratio(vary["samples"], vary["data"])
    return {"nearest": near, "variety": vary}, index


def precision_recall(
    samples: Tensor, real: Tensor, k: int = 3, radii: Tensor | None = None
) -> tuple[float | None, float | None]:
    """Return improved precision and recall (Kynkaanniemi et al. 2019) of features (N, D) against
    (M, D).

    Precision is the share of samples that lie within the distance r_k(y) of some real y, to the
    k-th nearest other real one; recall the same with the two sets exchanged. `radii` (M,): r_k of
    the real features where known. (None, None) where a set has no more than k.
    """
    if min(len(samples), len(real)) <= k:
        return None, None
    real_radii = neighbour_radii(real, k) if radii is None else radii
    sample_radii = neighbour_radii(samples, k)
    recalled = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    precise = 0
    size = max(1, LARGEST // len(real))
    for part, own in zip(samples.split(size), sample_radii.split(size), strict=True):
        distance = _distances(part, real)
        precise += int((distance <= real_radii).any(1).sum())
        recalled |= (distance <= own[:, None]).any(0)
    return precise / len(samples), int(recalled.sum()) / len(real)


def neighbour_radii(features: Tensor, k: int = 3) -> Tensor:
    """Return the distance (N,) of each of the features (N, D) to its k-th nearest other; N > k."""
    parts = features.split(max(1, LARGEST // len(features)))
    # The nearest of all is the feature itself, or a copy of it: at 0 in both cases.
    return torch.cat([_distances(part, features).kthvalue(k + 1, dim=1).values for part in parts])


def _distances(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _pixels(images: Tensor) -> Tensor:
    """uint8 (n, H, W, 3) -> float32 (n, 3 H W) in [0, 1]."""
    return images.flatten(1).float().div_(255)


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None
