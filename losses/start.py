"""The start images of SGLD chains: uniform noise, or Gaussians fitted to the training images.

`draw(like, labels, generator)` returns start images of the shape, type and device of `like`
(n, 3, H, W), within [-1, 1]; `labels` (n,) are the chains' classes, or None.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FIT = 8  # side in pixels of the images that the Gaussians are fitted to
CHUNK = 512  # images drawn at once: each gets a copy of its class's square root, 147 KB


class UniformStart(nn.Module):
    """Every pixel U(-1, 1) for all classes: JEM's start."""

    def draw(
        self, like: Tensor, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        return torch.empty_like(like).uniform_(-1, 1, generator=generator)


class GaussianStart(nn.Module):
    """A Gaussian, or a Gaussian for each class, over images of FIT x FIT pixels.

        low ~ N(mean_y, Sigma_y),  image = clip(upsample(low), -1, 1)     (bilinear)

    `mean` (G, D) and `root` (G, D, D), the symmetric square root of Sigma_y, with D = 3 FIT^2 = 192
    and G = 1 or the number of classes: 148 KB a class for images of any size (15 MB for 100
    classes). A chain without a label gets a class at random. JEM++ and SADA-JEM (Yang and Ji
    2021, 2023) fit a Gaussian to each class at full resolution instead.
    """

    mean: Tensor
    root: Tensor

    def __init__(self, groups: int) -> None:
        super().__init__()
        size = 3 * FIT * FIT
        self.register_buffer("mean", torch.zeros(groups, size))
        self.register_buffer("root", torch.zeros(groups, size, size))

    @torch.no_grad()
    def fit(self, images: Tensor, labels: Tensor | None = None) -> None:
        """Fit to images uint8 (N, H, W, 3). With labels (N,) in [0, G), fit a Gaussian to each
        class; label -1 marks an image whose label may not be used. Raises ValueError for labels
        where G is 1, and for no labels where it is not.

            Sigma_y = (1 - w) S_y + w S,  w = D / (D + n_y)

        S_y is the covariance of the class's n_y images, and S the mean of S_y weighted by n_y, so
        that a class with few images takes most of its covariance from all classes.
        """
        if (labels is None) != (len(self.mean) == 1):
            raise ValueError(f"{len(self.mean)} groups: give labels for several groups, else none")
        low = _low(images)
        if labels is None:
            groups = [low]
        else:
            labels = labels.cpu()
            groups = [low[labels == y] for y in range(len(self.mean))]
        size, total = low.shape[1], sum(map(len, groups))
        if any(len(group) == 0 for group in groups):  # a class without images gets this mean
            overall = low.mean(0)
        means = [group.mean(0) if len(group) else overall for group in groups]
        scatters = [(g - m).T @ (g - m) for g, m in zip(groups, means, strict=True)]
        pooled = torch.stack(scatters).sum(0) / total
        for y, (group, mean, scatter) in enumerate(zip(groups, means, scatters, strict=True)):
            n = len(group)
            weight = size / (size + n)
            covariance = (1 - weight) * scatter / max(1, n) + weight * pooled
            values, vectors = torch.linalg.eigh(covariance)
            self.mean[y] = mean
            self.root[y] = vectors * values.clamp(min=0).sqrt() @ vectors.T

    def draw(
        self, like: Tensor, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        n, groups = len(like), len(self.mean)
        noise = torch.randn(
            n, self.mean.shape[1], device=like.device, dtype=self.mean.dtype, generator=generator
        )
        if groups == 1:
            labels = torch.zeros(n, dtype=torch.int64, device=like.device)
        elif labels is None:
            labels = torch.randint(groups, (n,), device=like.device, generator=generator)
        low = torch.cat(
            [
                self.mean[y] + torch.einsum("nij,nj->ni", self.root[y], z)
                for y, z in zip(labels.split(CHUNK), noise.split(CHUNK), strict=True)
            ]
        )
        images = low.view(n, 3, FIT, FIT).to(like.dtype)
        images = F.interpolate(images, size=like.shape[2:], mode="bilinear", align_corners=False)
        return images.clamp_(-1, 1)


Start = UniformStart | GaussianStart


def new_start(kind: str, num_classes: int) -> Start:
    """Make the start of --chain_start `kind`; a Gaussian is 0 until it is loaded or fitted."""
    if kind == "uniform":
        return UniformStart()
    return GaussianStart(1 if kind == "gaussian" else num_classes)


def _low(images: Tensor) -> Tensor:
    """Shrink images uint8 (N, H, W, 3) by block means: CPU float64 (N, 3 FIT^2) in [-1, 1]."""
    parts = [
        F.adaptive_avg_pool2d(part.permute(0, 3, 1, 2).double() / 127.5 - 1, FIT).flatten(1).cpu()
        for part in images.split(1000)
    ]
    return torch.cat(parts)
