"""FID and Inception Score, against closed forms, brute force and torch-fidelity."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn

from data import to_float
from evaluation.generation import (
    CHUNK,
    Extractor,
    evaluate_samples,
    frechet_distance,
    inception_score,
    model_extractor,
    moments,
)
from evaluation.sampling import most_confident_parts
from models import EnergyClassifier
from runs.cli import UsageError


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def pictures(n: int, seed: int = 0, high: int = 256) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (n, 32, 32, 3)
    return torch.randint(high, shape, generator=generator, dtype=torch.int32).to(torch.uint8)


# --- the Inception Score


def test_inception_score_of_extremes() -> None:
    sure = torch.eye(7, dtype=torch.float64).repeat(20, 1)
    assert inception_score(sure) == pytest.approx((7, 0))
    assert inception_score(torch.full((30, 7), 1 / 7)) == pytest.approx((1, 0))
    one_class = torch.eye(7)[[3] * 30]
    assert inception_score(one_class) == pytest.approx((1, 0))


def test_inception_score_by_brute_force() -> None:
    p, splits = (2 * normal(23, 4)).softmax(1), 5
    scores = []
    for i in range(splits):
        part = p[i * 23 // splits : (i + 1) * 23 // splits].tolist()
        q = [sum(row[c] for row in part) / len(part) for c in range(4)]
        kl = [sum(row[c] * math.log(row[c] / q[c]) for c in range(4)) for row in part]
        scores.append(math.exp(sum(kl) / len(kl)))
    mean = sum(scores) / splits
    std = math.sqrt(sum((score - mean) ** 2 for score in scores) / splits)
    assert std > 0.01
    assert inception_score(p, splits) == pytest.approx((mean, std), rel=1e-12)


# --- the Frechet distance


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


# --- samples through an extractor


def linear_extractor(dimensions: int = 6, classes: int = 4) -> Extractor:
    """float64 features: torch-fidelity averages in the features' own precision."""
    weights = normal(3072, dimensions + classes, seed=7) / 2000

    def extract(images: Tensor) -> tuple[Tensor, Tensor]:
        out = images.flatten(1).double() @ weights
        return out[:, :dimensions], out[:, dimensions:].softmax(1)

    return extract


def test_samples_are_compared_in_chunks() -> None:
    sizes = []
    extractor = linear_extractor()

    def watched(images: Tensor) -> tuple[Tensor, Tensor]:
        sizes.append(len(images))
        return extractor(images)

    samples, reference = pictures(CHUNK + 5, high=200), pictures(40, seed=1)
    result = evaluate_samples(samples, reference, watched)
    assert sizes == [CHUNK, 5, 40]
    x, y = (extractor(images)[0] for images in (samples, reference))
    assert result["fid"] == pytest.approx(frechet_distance(*moments(x), *moments(y)), rel=1e-9)
    counts = {name: result[name] for name in ("n", "n_reference", "n_score", "n_features")}
    assert counts == {"n": CHUNK + 5, "n_reference": 40, "n_score": CHUNK + 5, "n_features": 6}


@pytest.mark.parametrize(("n", "m", "full"), [(7, 7, True), (6, 7, False), (7, 6, False)])
def test_full_rank_needs_more_images_than_features(n: int, m: int, full: bool) -> None:
    result = evaluate_samples(pictures(n), pictures(m, 1), linear_extractor(), splits=2)
    assert result["full_rank"] is full and result["fid"] > 0


def test_another_part_can_be_scored() -> None:
    extractor, samples, part = linear_extractor(), pictures(30, high=99), pictures(20, seed=3)
    whole = evaluate_samples(samples, samples, extractor, splits=1)
    other = evaluate_samples(samples, samples, extractor, score_part=part, splits=1)
    assert whole["fid"] == other["fid"] < 1e-9
    assert other["n_score"] == 20 and other["n"] == 30
    for result, scored in ((whole, samples), (other, part)):
        expected, _ = inception_score(extractor(scored)[1], 1)
        assert result["inception_score_mean"] == pytest.approx(expected, rel=1e-12)


def test_samples_sorted_by_class_are_no_trap_and_global_random_states_stay() -> None:
    samples = torch.arange(10, dtype=torch.uint8).repeat_interleave(50)[:, None, None, None]
    samples = samples.expand(500, 32, 32, 3)

    def by_class(images: Tensor) -> tuple[Tensor, Tensor]:
        label = images[:, 0, 0, 0].long()
        return label[:, None].double(), torch.eye(10)[label]

    np.random.seed(5)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[index,union-attr]
    first, second = (evaluate_samples(samples, samples, by_class) for _ in range(2))
    assert first == second
    assert 9 < first["inception_score_mean"] <= 10
    assert np.array_equal(before[0], np.random.get_state()[1])  # type: ignore[index]
    assert torch.equal(before[1], torch.get_rng_state())


def broken(images: Tensor) -> tuple[Tensor, Tensor]:
    return torch.full((len(images), 2), torch.nan), torch.ones(len(images), 2)


@pytest.mark.parametrize(
    ("n", "m", "k", "extractor", "message"),
    [
        (1, 20, 20, linear_extractor, "1 samples are too few: give 2"),
        (20, 0, 20, linear_extractor, "0 reference images are too few: give 4"),
        (20, 20, 9, linear_extractor, "9 samples to score are too few: give 10"),
        (20, 20, 20, lambda: broken, "not finite"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    n: int, m: int, k: int, extractor: Callable[[], Extractor], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as error:
        evaluate_samples(pictures(n), pictures(m), extractor(), score_part=pictures(k))
    assert "\n" not in str(error.value)


def test_agrees_with_torch_fidelity_and_a_registered_extractor() -> None:
    fidelity = pytest.importorskip("torch_fidelity", reason="needs torch-fidelity")
    from torch.utils.data import Dataset
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    extractor = linear_extractor()

    class Registered(FeatureExtractorBase):
        def __init__(self, name: str, features_list: list[str], **_: Any) -> None:
            super().__init__(name, features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return "features", "logits"

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return {"isc": "logits", "fid": "features"}[metric]

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            features, probabilities = extractor(images.permute(0, 2, 3, 1))
            found = {"features": features, "logits": probabilities.log()}
            return tuple(found[name] for name in self.features_list)

    class Images(Dataset):
        def __init__(self, images: Tensor) -> None:
            self.images = images.permute(0, 3, 1, 2)

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, index: int) -> Tensor:
            return self.images[index]

    name = "linear-of-test-generation"
    if name not in fidelity.registry.FEATURE_EXTRACTORS_REGISTRY:
        fidelity.register_feature_extractor(name, Registered)
    samples, reference = pictures(205, high=200), pictures(120, seed=1)
    theirs = fidelity.calculate_metrics(
        input1=Images(samples),
        input2=Images(reference),
        feature_extractor=name,
        **{"fid": True, "isc": True, "cuda": False, "cache": False, "verbose": False},
        save_cpu_ram=True,
    )
    ours = evaluate_samples(samples, reference, extractor)
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-9)
    for key in ("inception_score_mean", "inception_score_std"):
        assert ours[key] == pytest.approx(theirs[key], rel=1e-9)
    assert theirs["inception_score_std"] > 1e-4


# --- a model's features, and the part it is most confident of


class Backbone(nn.Module):
    num_features = 5

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(3072, 5), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear(x.flatten(1)).tanh())


def model_of(classes: int = 3) -> EnergyClassifier:
    torch.manual_seed(0)
    return EnergyClassifier(Backbone(), classes).train()  # type: ignore[arg-type]


def test_a_model_extracts_its_penultimate_features() -> None:
    model, images = model_of(), pictures(7)
    features, probabilities = model_extractor(model, batch_size=3)(images)
    assert model.training and model.f.dropout.training  # type: ignore[union-attr]
    assert not features.requires_grad and not probabilities.requires_grad
    model.eval()
    x = to_float(images)
    torch.testing.assert_close(features, model.features(x).detach())
    expected = model.classify(x).exp().detach().double()
    torch.testing.assert_close(probabilities, expected, rtol=1e-5, atol=0)


class Pixels(nn.Module):
    """Logits are the first pixels of the image; dropout would spoil them outside eval mode."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes, self.dropout = classes, nn.Dropout(0.9)
        self.class_output = nn.Linear(1, classes)

    def logits(self, x: Tensor) -> Tensor:
        return self.dropout(x[:, 0, 0, : self.classes])


def test_the_most_confident_part_of_each_class() -> None:
    """Logits (a, 0) or (0, a): class 0 has a = 1, 3, 30, 40, 2; class 1 has 5, 4, 6; class 2 none.

    In float32, q(0|x) is 1 for 30 and for 40; these images are unclipped, as chains leave them.
    """
    images = torch.full((8, 3, 32, 32), -50.0)
    for i, (label, a) in enumerate(
        [(0, 1), (1, 5), (0, 3), (0, 30), (1, 4), (0, 40), (0, 2), (1, 6)]
    ):
        images[i, 0, 0, :2] = 0.0
        images[i, 0, 0, label] = a
    model = Pixels(3).train()
    shares = (1.0, 0.6, 0.1)
    chosen = most_confident_parts(model, images, shares=shares, batch_size=3)  # type: ignore[arg-type]
    expected = [[5, 3, 2, 6, 0, 7, 1, 4], [5, 3, 2, 7], []]
    assert [part.tolist() for part in chosen] == expected
    assert model.training and model.dropout.training
