"""Calibration against a case counted by hand, torchmetrics and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluation import NotFinite
from evaluation.calibration import T_RANGE, calibration, fit_temperature


def overconfident(n: int = 400, classes: int = 7) -> tuple[Tensor, Tensor]:
    """Draw labels from softmax(z), and return 3 z as logits."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, classes, generator=generator, dtype=torch.float64) * 1.5
    return 3 * z, torch.multinomial(z.softmax(1), 1, generator=generator)[:, 0]


def nll(logits: Tensor, labels: Tensor, temperature: float) -> float:
    return torch.nn.functional.cross_entropy(logits / temperature, labels).item()


def test_a_case_counted_by_hand():
    # Confidences 1/2 (two images, both on the edge of bins 10 and 11 of 20: the 10th), 1/4 (on the
    # edge of 5 and 6: the 5th), 0.97 and 1 (the last bin).
    logits = torch.full((5, 4), -2000.0)
    logits[:2, :2] = 0
    logits[2] = 7.0
    logits[3] = torch.tensor([0.97, 0.01, 0.01, 0.01]).log()
    logits[4, 1] = 2000.0
    labels = torch.tensor([0, 1, 3, 1, 1])  # right: 1st, 5th (of equal logits the first is taken)
    result = calibration(logits, labels, n_bins=20)

    edges = [(b["lower"], b["upper"]) for b in result["bins"]]
    assert edges == [(m / 20, (m + 1) / 20) for m in range(20)]
    assert result["bins"][0]["confidence"] is result["bins"][0]["accuracy"] is None
    filled = {m: b for m, b in enumerate(result["bins"]) if b["count"]}
    counts = {m: (b["count"], b["accuracy"]) for m, b in filled.items()}
    assert counts == {4: (1, 0.0), 9: (2, 0.5), 19: (2, 0.5)}
    assert filled[4]["confidence"] == 0.25 and filled[9]["confidence"] == 0.5
    assert filled[19]["confidence"] == pytest.approx(0.985)
    assert result["ece"] == pytest.approx((1 * 0.25 + 2 * 0 + 2 * 0.485) / 5)
    assert result["accuracy"] == 2 / 5 and result["n"] == 5 and result["n_bins"] == 20
    losses = [math.log(2), math.log(2), math.log(4), -math.log(0.01), 0]
    assert result["nll"] == pytest.approx(sum(losses) / 5)
    briers = [0.5, 0.5, 0.75**2 + 3 * 0.25**2, 0.97**2 + 0.99**2 + 2 * 0.01**2, 0]
    assert result["brier"] == pytest.approx(sum(briers) / 5)


def test_numbers_agree_with_other_libraries():
    from sklearn.metrics import accuracy_score, log_loss

    logits, labels = overconfident()
    result, q = calibration(logits, labels), logits.softmax(1).numpy()
    assert result["nll"] == pytest.approx(log_loss(labels, q), rel=1e-9)
    assert result["accuracy"] == pytest.approx(accuracy_score(labels, q.argmax(1)))
    brier = np.mean(np.sum((q - np.eye(7)[labels]) ** 2, axis=1))
    assert result["brier"] == pytest.approx(brier, rel=1e-12)
    metrics = pytest.importorskip("torchmetrics.classification", reason="a test extra")
    theirs = metrics.MulticlassCalibrationError(num_classes=7, n_bins=20, norm="l1")
    assert result["ece"] == pytest.approx(theirs(logits.softmax(1), labels).item(), abs=1e-6)


def test_half_precision_counts_in_float64_and_logits_that_are_not_finite_are_refused():
    logits, labels = overconfident(50)
    half = logits.bfloat16()
    assert calibration(half, labels) == calibration(half.double(), labels)
    assert fit_temperature(half, labels) == fit_temperature(half.double(), labels)
    logits[3, 1], logits[7] = math.nan, math.inf
    for function in (calibration, fit_temperature):
        with pytest.raises(NotFinite, match="2 of 50 images"):
            function(logits, labels)


def test_at_the_fitted_temperature_the_derivative_is_zero_and_no_grid_point_is_better():
    logits, labels = overconfident()
    t = fit_temperature(logits, labels)
    assert 2.5 < t < 3.6  # 3 but for 400 draws
    beta = torch.tensor(1 / t, dtype=torch.float64, requires_grad=True)
    torch.nn.functional.cross_entropy(logits * beta, labels).backward()
    assert beta.grad is not None and abs(beta.grad.item()) < 1e-8
    best = nll(logits, labels, t)
    assert best < min(nll(logits, labels, t * x) for x in (1.01, 1 / 1.01))
    assert best <= min(nll(logits, labels, x) for x in np.geomspace(*T_RANGE, 200))
    assert calibration(logits / t, labels)["ece"] < calibration(logits, labels)["ece"]
    assert fit_temperature(20 * logits, labels) == pytest.approx(20 * t, rel=1e-6)


def test_images_that_determine_no_temperature_give_none():
    logits, _ = overconfident()
    assert fit_temperature(logits, logits.argmax(1)) is None  # all right
    assert fit_temperature(1e6 * logits, logits.argmin(1)) is None  # all wrong
    assert fit_temperature(torch.full((3, 4), 5.0), torch.tensor([0, 1, 3])) is None
