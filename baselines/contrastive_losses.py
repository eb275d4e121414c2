"""Contrastive learning on pairs of views: SupCon, NT-Xent, and the head that they look through."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ProjectionHead(nn.Module):
    """Features (N, D) -> unit vectors (N, size): linear D -> D, ReLU, linear D -> size, L2 norm.

    Chen et al. 2020, section 2.1. Used in contrastive training alone: classifiers read the
    features before it.
    """

    def __init__(self, features: int, size: int = 128) -> None:
        super().__init__()
        self.hidden = nn.Linear(features, features)
        self.output = nn.Linear(features, size)

    def forward(self, features: Tensor) -> Tensor:
        return F.normalize(self.output(self.hidden(features).relu()), dim=1)


def supervised_contrastive(z: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """L_out of Khosla et al. 2020 (Eq. 2), averaged over the anchors i.

        loss[i] = -1/|P(i)| sum_{p in P(i)} log(exp(z_i.z_p / T) / sum_{a != i} exp(z_i.z_a / T))

    z: unit vectors (M, d) of all views of a batch; labels (M,), equal for what belongs together;
    P(i) are the others with i's label, of which there must be one or more (a second view is one).
    temperature T > 0. Returns a scalar in nats; it is near log(M - 1) for an untrained network.
    The SupContrast code multiplies it by T / 0.07 besides; the paper's formula, and this, do not.
    """
    scores = z @ z.T / temperature  # (M, M)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    log_sum = scores.masked_fill(itself, -torch.inf).logsumexp(1)  # (M,)
    positive = (labels[:, None] == labels) & ~itself
    mean_positive = (scores * positive).sum(1) / positive.sum(1)
    return (log_sum - mean_positive).mean()


def nt_xent(z: Tensor, temperature: float) -> Tensor:
    """NT-Xent of Chen et al. 2020 (Eq. 1), averaged over all 2N anchors; in nats.

    z: unit vectors (2N, d), the first views of N images and then, in the same order, the second.
    The one positive of a view is the other view of its image; the 2N - 2 others are negatives,
    whatever they show: no labels are used.
    """
    image = torch.arange(len(z) // 2, device=z.device).repeat(2)
    return supervised_contrastive(z, image, temperature)
