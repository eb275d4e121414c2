"""The distance of two sets of features, each taken as a Gaussian, as in an FID."""

from __future__ import annotations

import torch
from torch import Tensor

from evaluation import NotFinite


class Statistics:
    """Mean and covariance of features that arrive in parts, in float64 on the CPU.

    Parts are merged around their own means (Chan, Golub & LeVeque 1979), so that a mean much
    larger than the spread costs no digits, as a running sum of squares would.
    """

    def __init__(self) -> None:
        self.n = 0
        self.mean = torch.zeros((), dtype=torch.float64)  # (D,) from the first part on
        self._scatter = torch.zeros((), dtype=torch.float64)  # (D, D): sum of (x - mean)(x - mean)'

    def add(self, features: Tensor) -> None:
        """Add features (n, D), on any device and of any float type; n may be 0."""
        n = len(features)
        if n == 0:
            return
        features = features.detach().to("cpu", torch.float64)
        mean = features.mean(0)
        centred, shift = features - mean, mean - self.mean
        between = torch.outer(shift, shift) * (self.n * n / (self.n + n))
        self._scatter = self._scatter + centred.T @ centred + between
        self.mean = self.mean + shift * (n / (self.n + n))
        self.n += n

    @property
    def cov(self) -> Tensor:
        """Return the unbiased covariance (D, D), divided by n - 1. Raises ValueError if n < 2."""
        if self.n < 2:
            raise ValueError(f"a covariance needs 2 samples or more, not {self.n}")
        return self._scatter / (self.n - 1)


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """Return the squared Frechet (2-Wasserstein) distance of two Gaussians, 0 or above.

        |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

    Dowson & Landau (1982); of Inception's features it is the FID of Heusel et al. (2017). Means
    (D,) and covariances (D, D), tensors or arrays; computed in float64.

    With S = A A', the last trace is the sum of the singular values of A1' A2. Unlike the square
    roots of the eigenvalues of S1 S2, they carry an eigenvalue's rounding of 1e-16 as it is and
    not as its root, 1e-8: covariances without full rank lose no digits.

    Raises ValueError where the shapes differ, and NotFinite.
    """
    m1, s1, m2, s2 = (
        torch.as_tensor(each, dtype=torch.float64, device="cpu")
        for each in (mean1, cov1, mean2, cov2)
    )
    if not (m1.shape == m2.shape and s1.shape == s2.shape == m1.shape * 2):
        shapes = ", ".join(str(tuple(each.shape)) for each in (m1, s1, m2, s2))
        raise ValueError(f"means (D,) and covariances (D, D) of one D are needed, not {shapes}")
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
