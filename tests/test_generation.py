"""FID and Inception Score, against closed forms, brute force and torch-fidelity."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

import models
from data import to_float
from data.images import resize_batch
from evaluation.generation import (
    SCORE_ORDER,
    compared,
    decline,
    evaluate_samples,
    frechet_distance,
    inception_score,
    model_extractor,
    moments,
    read_as_asked,
)
from evaluation.neighbours import precision_recall
from runs.cli import UsageError


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def pictures(n: int, seed: int = 0, high: int = 256) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(high, (n, 32, 32, 3), generator=generator).to(torch.uint8)


def test_inception_score_by_brute_force_and_of_extremes():
    p, scores = (2 * normal(23, 4)).softmax(1), []
    for start, end in pairwise([0, 4, 9, 13, 18, 23]):
        rows = p[start:end].numpy()
        scores.append(np.exp((rows * np.log(rows / rows.mean(0))).sum(1).mean()))
    assert np.std(scores) > 0.01
    expected = np.mean(scores), np.std(scores)
    assert inception_score(p, 5) == pytest.approx(expected, rel=1e-12)
    assert inception_score(torch.eye(7).repeat(20, 1)) == pytest.approx((7, 0))
    assert inception_score(torch.full((30, 7), 1 / 7)) == pytest.approx((1, 0))
    assert inception_score(torch.eye(7)[[3] * 30]) == pytest.approx((1, 0))


def test_frechet_distance_of_commuting_gaussians():
    """With one set of eigenvectors: |m1 - m2|^2 + sum (s1 - s2)^2 over standard deviations."""
    m1, m2 = normal(4), normal(4, seed=1)
    s1, s2 = torch.tensor([1.0, 2.0, 0.5, 3.0]), torch.tensor([2.0, 2.0, 0.0, 1.0])
    expected = ((m1 - m2).square().sum() + (s1 - s2).square().sum()).item()
    rotation = torch.linalg.qr(normal(4, 4, seed=2)).Q
    for basis in (torch.eye(4, dtype=torch.float64), rotation):
        covs = [basis @ torch.diag(s.double() ** 2) @ basis.T for s in (s1, s2)]
        assert frechet_distance(m1, covs[0], m2, covs[1]) == pytest.approx(expected, rel=1e-12)
        assert 0 <= frechet_distance(m1, covs[0], m1, covs[0]) < 1e-12


def test_frechet_distance_keeps_its_digits_without_full_rank():
    """Features that span 3 of 64 dimensions have the distance of their 3 coordinates."""
    basis = torch.linalg.qr(normal(64, 64)).Q[:, :3]
    x, y = normal(40, 3, seed=1) * 5, normal(40, 3, seed=2) + 1
    inside = frechet_distance(*moments(x), *moments(y))
    outside = frechet_distance(*moments(x @ basis.T), *moments(y @ basis.T))
    assert outside == pytest.approx(inside, rel=1e-12)


def test_moments_keep_their_digits_far_from_zero():
    """A covariance from sums of squares would have no correct digit there."""
    x = normal(50, 6) * torch.arange(1.0, 7) + 1e8
    mean, cov = moments(x)
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-15)
    np.testing.assert_allclose(cov, np.cov((x - 1e8).numpy().T), rtol=0, atol=1e-6)
    assert moments(torch.rand(3, 2))[1].dtype == torch.float64


WEIGHTS = normal(3072, 10, seed=7) / 2000


def linear(images: Tensor) -> tuple[Tensor, Tensor]:
    """Extract 6 features and 4 probabilities, float64: torch-fidelity averages in this type."""
    out = images.flatten(1).double() @ WEIGHTS
    return out[:, :6], out[:, 6:].softmax(1)


def test_rows_are_of_as_many_images_against_one_half_of_the_reference():
    """The FID is against the whole reference. An extractor gets at most 100 images at once."""
    sizes = []

    def watched(images: Tensor) -> tuple[Tensor, Tensor]:
        sizes.append(len(images))
        return linear(images)

    chains = {9: pictures(105), 0: pictures(105, 1), 4: pictures(105, 2, high=200)}
    reference = pictures(230, 3)
    numbers = evaluate_samples(chains, 4, reference, watched)
    assert sizes == [100, 5] * 3 + [100, 100, 30]

    def fid(a: Tensor, b: Tensor) -> float:
        parts = [part for x in (linear(a)[0], linear(b)[0]) for part in (x.mean(0), x.T.cov())]
        return pytest.approx(frechet_distance(*parts), rel=1e-9)

    counts = {"n": 105, "n_reference": 230, "n_score": 105, "n_features": 6, "full_rank": True}
    assert numbers.items() >= counts.items() and numbers["fid"] == fid(chains[4], reference)
    order = np.random.RandomState(SCORE_ORDER).permutation(230)
    half, other_half = reference[order[:105]], reference[order[105:210]]
    sets = [("starts", 0, chains[0]), ("samples", 4, chains[4]), ("samples", 9, chains[9])]
    sets.append(("reference images", None, other_half))
    for row, (name, steps, images) in zip(numbers["rows"], sets, strict=True):
        assert (row["images"], row["steps"], row["n"]) == (name, steps, 105)
        assert row["fid"] == fid(images, half)
        shares = precision_recall(linear(images)[0], linear(half)[0])
        assert (row["precision"], row["recall"]) == shares


def test_rows_of_few_reference_images():
    rows = compared({None: normal(50, 4)}, normal(7, 4, seed=1))
    assert [(row["images"], row["n"]) for row in rows] == [("samples", 3), ("reference images", 3)]
    assert all(row["fid"] > 0 and row["precision"] is row["recall"] is None for row in rows)


def test_another_part_can_be_scored_and_full_rank_needs_more_images_than_features():
    samples, part = pictures(6, high=99), pictures(20, seed=3)
    for scored in (None, part):
        numbers = evaluate_samples({None: samples}, None, part, linear, score_part=scored, splits=1)
        expected, _ = inception_score(linear(samples if scored is None else part)[1], 1)
        assert numbers["inception_score_mean"] == pytest.approx(expected, rel=1e-12)
        assert (numbers["n"], numbers["n_score"]) == (6, 6 if scored is None else 20)
        assert numbers["full_rank"] is False and numbers["fid"] > 0


def by_first_pixel(images: Tensor) -> tuple[Tensor, Tensor]:
    """Extract probabilities of 10 classes, 0 or 1: the first pixel is the class."""
    one_hot = torch.eye(10, dtype=torch.float64)[images[:, 0, 0, 0].long()]
    return one_hot, one_hot


def test_samples_sorted_by_class_are_shuffled_for_their_score_and_global_random_states_stay():
    samples = torch.arange(10, dtype=torch.uint8).repeat_interleave(50)[:, None, None, None]
    samples = samples.expand(500, 32, 32, 3)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    first, second = (evaluate_samples({0: samples}, 0, samples, by_first_pixel) for _ in range(2))
    assert first == second
    assert 9 < first["inception_score_mean"] <= 10
    assert np.array_equal(before[0], np.random.get_state()[1])
    assert torch.equal(before[1], torch.get_rng_state())


def not_finite(images: Tensor) -> tuple[Tensor, Tensor]:
    return linear(images)[0] * torch.nan, linear(images)[1]


@pytest.mark.parametrize(
    ("n", "m", "k", "extractor", "message"),
    [
        (1, 20, 20, linear, "1 samples are too few: give 2"),
        (20, 0, 20, linear, "0 reference images are too few: give 4"),
        (20, 20, 9, linear, "9 samples to score are too few: give 10"),
        (20, 20, 20, not_finite, "not finite"),
    ],
)
def test_too_few_images_and_features_that_are_not_finite_are_one_line(n, m, k, extractor, message):
    with pytest.raises(UsageError, match=message) as error:
        evaluate_samples({0: pictures(n)}, 0, pictures(m), extractor, score_part=pictures(k))
    assert "\n" not in str(error.value)


def test_agrees_with_torch_fidelity():
    isc = pytest.importorskip("torch_fidelity.metric_isc", reason="needs torch-fidelity")
    from torch_fidelity import metric_fid

    samples, reference = pictures(205, high=200), pictures(120, 1)
    (x, p), (y, _) = map(linear, (samples, reference))
    statistics = map(metric_fid.fid_features_to_statistics, (x, y))
    library = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)
    library |= isc.isc_features_to_metric(p.log())
    numbers = evaluate_samples({9: samples}, 9, reference, linear)
    assert numbers["fid"] == pytest.approx(library["frechet_inception_distance"], rel=1e-9)
    for key in ("inception_score_mean", "inception_score_std"):
        assert numbers[key] == pytest.approx(library[key], rel=1e-9)
    assert library["inception_score_std"] > 1e-4


def test_a_model_extracts_its_penultimate_features_in_eval_mode_of_images_of_its_size():
    images = pictures(3)
    model = models.build(depth=10, width=1, image_size=16, dropout_rate=0.5).train()
    features, probabilities = model_extractor(model)(images)
    assert not features.requires_grad and not probabilities.requires_grad
    with torch.no_grad(), models.eval_mode(model):
        x = to_float(resize_batch(images, 16))
        assert torch.equal(features, model.features(x))
        expected = model.classify(x).exp().double()
    torch.testing.assert_close(probabilities, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("fids", "message"),
    [
        ([90, 50, 52.5], None),
        ([90, 50, 52.6], "lowest after 20 steps, 50, and 52.6 after 40"),
        ([90, 50, 60, 51], "lowest after 20 steps, 50, and 60 after 40"),
        ([90], None),
    ],
)
def test_chains_whose_fid_rises_by_more_than_5_percent_are_reported(fids, message):
    rows = [{"steps": 20 * i, "fid": fid} for i, fid in enumerate(fids)]
    warning = decline([*rows, {"steps": None, "fid": 1.0}])
    if message is None:
        assert warning is None
    else:
        assert message in warning and "\n" not in warning


def test_the_share_that_is_read_as_asked_is_overall_and_per_class():
    labels = torch.tensor([0, 1, 2, 0, 2])
    samples, starts = torch.zeros(2, 5, 2, 2, 3, dtype=torch.uint8)
    samples[:, 0, 0, 0] = torch.tensor([0, 1, 1, 0, 2])
    shares = read_as_asked(by_first_pixel, samples, starts, labels)
    assert shares["samples"] == pytest.approx(0.8) and shares["starts"] == pytest.approx(0.4)
    assert shares["per_class"] == [
        {"class": 0, "n": 2, "samples": 1.0, "starts": 1.0},
        {"class": 1, "n": 1, "samples": 1.0, "starts": 0.0},
        {"class": 2, "n": 2, "samples": 0.5, "starts": 0.0},
    ]
