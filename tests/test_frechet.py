"""The Frechet distance and its statistics, against closed forms, scipy and numpy."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from evaluation.frechet import frechet_distance, moments


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_frechet_distance_of_commuting_gaussians() -> None:
    """With one set of eigenvectors: |m1 - m2|^2 + sum (s1 - s2)^2 over standard deviations."""
    m1, m2 = normal(4), normal(4, seed=1)
    s1, s2 = torch.tensor([1.0, 2.0, 0.5, 3.0]), torch.tensor([2.0, 2.0, 0.0, 1.0])
    expected = ((m1 - m2).square().sum() + (s1 - s2).square().sum()).item()
    rotation = torch.linalg.qr(normal(4, 4, seed=2)).Q
    for basis in (torch.eye(4, dtype=torch.float64), rotation):
        covs = [basis @ torch.diag(s.double() ** 2) @ basis.T for s in (s1, s2)]
        assert frechet_distance(m1, covs[0], m2, covs[1]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n", [200, 5])  # 5 < D: rank 4
def test_frechet_distance_of_identical_gaussians_is_zero(n: int) -> None:
    mean, cov = moments(normal(n, 8) + 3)
    assert 0 <= frechet_distance(mean, cov, mean, cov) < 1e-13 * cov.trace()


@pytest.mark.parametrize("seed", range(3))
def test_frechet_distance_agrees_with_scipy(seed: int) -> None:
    (m1, s1), (m2, s2) = (
        moments(normal(60, 12, seed=10 * seed + i) @ normal(12, 12, seed=99 + i)) for i in (0, 1)
    )
    root = scipy.linalg.sqrtm((s1 @ s2).numpy()).real
    expected = (m1 - m2).square().sum() + s1.trace() + s2.trace() - 2 * np.trace(root)
    distance = frechet_distance(m1, s1, m2, s2)
    assert distance == pytest.approx(expected.item(), rel=1e-9)
    assert distance == pytest.approx(frechet_distance(m2, s2, m1, s1), rel=1e-12)


def test_frechet_distance_keeps_its_digits_without_full_rank() -> None:
    """Rank 3 of 64, in a random basis: the same numbers as in the 3 dimensions themselves."""
    basis = torch.linalg.qr(normal(64, 64)).Q[:, :3]
    x, y = normal(40, 3, seed=1) * 5, normal(40, 3, seed=2) + 1
    inside = frechet_distance(*moments(x), *moments(y))
    outside = frechet_distance(*moments(x @ basis.T), *moments(y @ basis.T))
    assert outside == pytest.approx(inside, rel=1e-12)


def test_gaussians_are_finite() -> None:
    mean, cov = moments(normal(9, 3))
    with pytest.raises(ValueError, match="finite"):
        frechet_distance(mean, cov * torch.nan, mean, cov)


def test_moments_keep_their_digits_far_from_zero() -> None:
    """Where a sum of squares loses every digit of the covariance."""
    x = normal(50, 6) * torch.arange(1.0, 7) + 1e8
    mean, cov = moments(x)
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-15)
    np.testing.assert_allclose(cov, np.cov((x - 1e8).numpy().T), rtol=0, atol=1e-6)
    assert moments(torch.rand(3, 2))[1].dtype == torch.float64
