"""The distance of two sets of features, each taken as a Gaussian, as in an FID."""

from __future__ import annotations

import torch
from torch import Tensor

from evaluation import NotFinite


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D, D) of features (N, D), in float64 on the CPU; N > 1."""
    x = features.detach().to("cpu", torch.float64)
    mean = x.mean(0)
    centred = x - mean
    return mean, centred.T @ centred / (len(x) - 1)


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """Return the squared Frechet (2-Wasserstein) distance of two Gaussians, 0 or above.

        |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

    Dowson & Landau (1982); of Inception's features it is the FID of Heusel et al. (2017). Means
    (D,) and covariances (D, D), tensors or arrays; computed in float64.

    With S = A A', the last trace is the sum of the singular values of A1' A2. Unlike the square
    roots of the eigenvalues of S1 S2, they carry an eigenvalue's rounding of 1e-16 as it is and
    not as its root, 1e-8: covariances without full rank lose no digits.

    Raises NotFinite.
    """
    m1, s1, m2, s2 = (
        torch.as_tensor(each, dtype=torch.float64, device="cpu")
        for each in (mean1, cov1, mean2, cov2)
    )
    if not all(each.isfinite().all() for each in (m1, s1, m2, s2)):
        raise NotFinite("means and covariances must be finite")
    root_trace = torch.linalg.svdvals(_factor(s1).T @ _factor(s2)).sum()
    distance = (m1 - m2).square().sum() + s1.trace() + s2.trace() - 2 * root_trace
    return max(0.0, distance.item())


def _factor(cov: Tensor) -> Tensor:
    """Return A (D, rank) with A A' = cov, without eigenvalues that are 0 but for rounding."""
    values, vectors = torch.linalg.eigh(cov)
    kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, kept] * values[kept].sqrt()
