"""Distances between images, and between features of images: nearest neighbours, variety, and the
precision and recall of samples.

Images are uint8 (N, H, W, 3). The distance of two images is the L2 norm of their difference, with
pixels in [0, 1] as for the radii of attacks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LARGEST = 2**24  # distances, or pixels of the bank, in memory at once: 64 MiB in float32
PAIRED = 1000  # images of a class of which `variety` compares all pairs


def nearest(images: Tensor, bank: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """Find the k-th nearest image of `bank` (M, H, W, 3) for each of `images` (N, H, W, 3):
    distances float32 (N,) and indices int64 (N,). An image in the bank is its own first neighbour.

    Candidates are ranked by |b|^2/2 - x.b, a matrix product; distances are then computed from
    differences, so that the distance of a copy is exactly 0. M is at least k.
    """
    size, step = max(1, LARGEST // bank[0].numel()), max(1, LARGEST // len(bank))
    distances, indices = [], []
    for x in map(_pixels, images.split(step)):
        # In parts: the whole bank in float32 would take four times its memory in uint8.
        parts = map(_pixels, bank.split(size))
        rank = torch.cat([torch.addmm(b.square().sum(1) / 2, x, b.T, alpha=-1) for b in parts], 1)
        index = rank.topk(k, dim=1, largest=False).indices
        near = _pixels(bank[index.flatten()]).unflatten(0, index.shape)
        distance, order = (x[:, None] - near).norm(dim=2).sort(dim=1, stable=True)
        distances.append(distance[:, -1])
        indices.append(index.gather(1, order)[:, -1])
    return torch.cat(distances), torch.cat(indices)


def variety(images: Tensor) -> float | None:
    """Return the mean distance of all pairs of the first PAIRED images, or None without a pair."""
    if len(images) < 2:
        return None
    return float(torch.pdist(_pixels(images[:PAIRED])).double().mean())


def compare_with_training(
    samples: Tensor, starts: Tensor, labels: Tensor, data: Tensor, data_labels: Tensor
) -> tuple[dict[str, Any], Tensor]:
    """Measure how far samples are from the training images of their class and from each other.

    samples and starts uint8 (N, H, W, 3) with labels (N,), data (M, H, W, 3) with labels (M,); all
    labels 0 compare without classes. Returns the following numbers, and the index (N,) of each
    sample's nearest training image of its class.

        nearest: mean distance to the nearest other training image of the class, of `samples`,
                 `starts` and, as `data`, as many training images of the class as samples (or all),
                 evenly spaced; and the ratios of samples to starts and of samples to data
        variety: mean distance within a class, averaged over the classes, of the same three sets,
                 and the ratio of samples to data; None where no class has two images

    Raises ValueError for a class with fewer than 2 training images.
    """
    index = torch.zeros(len(samples), dtype=torch.int64, device=data.device)
    distances: dict[str, list[Tensor]] = {"samples": [], "starts": [], "data": []}
    spreads: dict[str, list[float]] = {name: [] for name in distances}
    for y in labels.unique().tolist():
        of_y, data_of_y = ((x == y).nonzero().flatten() for x in (labels, data_labels))
        if len(data_of_y) < 2:
            raise ValueError(f"class {y} has {len(data_of_y)} training images: 2 are needed")
        bank, n = data[data_of_y], min(len(of_y), len(data_of_y))
        spaced = bank[torch.arange(n, device=data.device) * len(data_of_y) // n]
        sets = {"samples": samples[of_y], "starts": starts[of_y], "data": spaced}
        for name, images in sets.items():
            distance, neighbour = nearest(images, bank, 2 if name == "data" else 1)
            distances[name].append(distance)
            if name == "samples":
                index[of_y] = data_of_y[neighbour]
            if (spread := variety(images)) is not None:
                spreads[name].append(spread)
    means: dict[str, Any] = {n: float(torch.cat(d).double().mean()) for n, d in distances.items()}
    varieties: dict[str, Any] = {n: sum(s) / len(s) if s else None for n, s in spreads.items()}
    means["samples_over_starts"] = _ratio(means["samples"], means["starts"])
    means["samples_over_data"] = _ratio(means["samples"], means["data"])
    varieties["samples_over_data"] = _ratio(varieties["samples"], varieties["data"])
    return {"nearest": means, "variety": varieties}, index


def precision_recall(
    samples: Tensor, real: Tensor, k: int = 3, radii: Tensor | None = None
) -> tuple[float | None, float | None]:
    """Return improved precision and recall (Kynkaanniemi et al. 2019) of features `samples` (N, D)
    against features `real` (M, D).

    Precision is the share of samples within r_k(y) of some real feature y, where r_k(y) is y's
    distance to its k-th nearest neighbour in `real`; recall exchanges the two sets. `radii` (M,):
    r_k of `real`, if already computed. Returns (None, None) if a set has k features or fewer.
    """
    if min(len(samples), len(real)) <= k:
        return None, None
    real_radii = neighbour_radii(real, k) if radii is None else radii
    sample_radii = neighbour_radii(samples, k)
    recalled = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    precise = 0
    size = max(1, LARGEST // len(real))
    for part, part_radii in zip(samples.split(size), sample_radii.split(size), strict=True):
        distance = _distances(part, real)
        precise += int((distance <= real_radii).any(1).sum())
        recalled |= (distance <= part_radii[:, None]).any(0)
    return precise / len(samples), int(recalled.sum()) / len(real)


def neighbour_radii(features: Tensor, k: int = 3) -> Tensor:
    """Return each feature's distance to its k-th nearest neighbour: (N,) of (N, D), N > k."""
    parts = features.split(max(1, LARGEST // len(features)))
    # k + 1: the nearest of all is the feature itself, or a copy of it, at distance 0.
    return torch.cat([_distances(part, features).kthvalue(k + 1, dim=1).values for part in parts])


def _distances(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _pixels(images: Tensor) -> Tensor:
    """Convert uint8 (n, H, W, 3) to float32 (n, 3 H W) in [0, 1]."""
    return images.flatten(1).float().div_(255)


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None
