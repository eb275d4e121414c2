"""The Frechet distance and its statistics, against closed forms, scipy and numpy."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from evaluation.frechet import Statistics, frechet_distance


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    return features.mean(0), features.T.cov()


def test_frechet_distance_of_commuting_gaussians() -> None:
    """With one set of eigenvectors: |m1 - m2|^2 + sum (s1 - s2)^2 over standard deviations."""
    m1, m2 = normal(4), normal(4, seed=1)
    s1, s2 = torch.tensor([1.0, 2.0, 0.5, 3.0]), torch.tensor([2.0, 2.0, 0.0, 1.0])
    expected = ((m1 - m2).square().sum() + (s1 - s2).square().sum()).item()
    rotation = torch.linalg.qr(normal(4, 4, seed=2)).Q
    for basis in (torch.eye(4, dtype=torch.float64), rotation):
        covs = [basis @ torch.diag(s.double() ** 2) @ basis.T for s in (s1, s2)]
        assert frechet_distance(m1, covs[0], m2, covs[1]) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_in_one_dimension() -> None:
    def one(value: float) -> np.ndarray:
        return np.array([value])

    distance = frechet_distance(one(1.0), one(4.0)[None], one(-2.0), one(25.0)[None])  # type: ignore[arg-type]
    assert distance == pytest.approx(3**2 + (5 - 2) ** 2, rel=1e-14)


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


def test_frechet_distance_refuses_what_is_no_pair_of_gaussians() -> None:
    mean, cov = moments(normal(9, 3))
    with pytest.raises(ValueError, match="of one D are needed"):
        frechet_distance(mean, cov, *moments(normal(9, 4)))
    with pytest.raises(ValueError, match="finite"):
        frechet_distance(mean, cov * torch.nan, mean, cov)


# --- running statistics


def test_statistics_in_parts_agree_with_numpy() -> None:
    """Far from zero, where a sum of squares loses every digit of the covariance."""
    x = normal(50, 6) * torch.arange(1.0, 7) + 1e8
    statistics = Statistics()
    for part in x.split([1, 0, 20, 29]):
        statistics.add(part)
    assert statistics.n == 50
    np.testing.assert_allclose(statistics.mean, x.mean(0), rtol=1e-15)
    np.testing.assert_allclose(statistics.cov, np.cov((x - 1e8).numpy().T), rtol=0, atol=1e-6)


def test_statistics_are_float64_and_need_two_samples() -> None:
    statistics = Statistics()
    statistics.add(torch.ones(1, 3))
    with pytest.raises(ValueError, match="2 samples or more, not 1"):
        _ = statistics.cov
    statistics.add(torch.zeros(1, 3))
    assert statistics.cov.dtype == statistics.mean.dtype == torch.float64
    torch.testing.assert_close(statistics.cov, torch.full((3, 3), 0.5, dtype=torch.float64))
