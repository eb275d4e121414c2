"""Calibration: of the images that q(y|x) is 80 % sure of, 80 % should be classified correctly."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from evaluation import NotFinite

T_RANGE = (0.01, 100.0)  # searched by `fit_temperature`; a network's temperature is 0.5 to 5


def calibration(logits: Tensor, labels: Tensor, n_bins: int = 20) -> dict[str, Any]:
    """Compute expected calibration error, NLL and Brier score of q(y|x) = softmax(logits), in
    float64.

        ECE = sum_m |B_m|/n |accuracy(B_m) - confidence(B_m)|,   B_m: ((m-1)/M, m/M]

    Equation 16 of HDGE (Liu and Abbeel 2020) after Guo et al. (2017): images go to M equal bins
    by confidence max_y q(y|x); accuracy(B) is the share of B classified correctly, confidence(B)
    its mean confidence. brier is the mean of sum_c (q_c - [c = y])^2, 0..2 (Brier 1950).

    Arguments: logits (N, C) and labels (N,) on the CPU, N and n_bins = M at least 1.
    Returns n; accuracy, ece (0..1); n_bins; bins, a list of M dicts {lower, upper, count,
    confidence, accuracy}, the last two None in an empty bin; nll (nats, >= 0); brier.
    Raises NotFinite.
    """
    logits, n = _float64(logits), len(labels)
    log_q = logits.log_softmax(1)
    # Not log_q.exp(): its further rounding would lift a confidence of 1/2 over its bin's edge.
    q = logits.softmax(1)
    confidence, predicted = q.max(1)
    correct = (predicted == labels).double()

    edges = torch.arange(n_bins + 1, dtype=torch.float64) / n_bins
    bin_of = torch.bucketize(confidence, edges[1:-1])  # edges[m] < confidence <= edges[m + 1]
    count = torch.bincount(bin_of, minlength=n_bins)
    sums = [torch.bincount(bin_of, weights, n_bins) for weights in (confidence, correct)]
    ece = (sums[1] - sums[0]).abs().sum() / n
    mean_confidence, accuracy = ((total / count).tolist() for total in sums)
    bins = [
        {
            "lower": m / n_bins,
            "upper": (m + 1) / n_bins,
            "count": images,
            "confidence": mean_confidence[m] if images else None,
            "accuracy": accuracy[m] if images else None,
        }
        for m, images in enumerate(count.tolist())
    ]
    one_hot = torch.nn.functional.one_hot(labels, logits.shape[1])
    return {
        "n": n,
        "accuracy": correct.mean().item(),
        "ece": ece.item(),
        "n_bins": n_bins,
        "bins": bins,
        "nll": -log_q.gather(1, labels[:, None]).mean().item(),
        "brier": (q - one_hot).square().sum(1).mean().item(),
    }


def fit_temperature(logits: Tensor, labels: Tensor) -> float | None:
    """Find the T within (0.01, 100) that minimises the mean NLL of softmax(logits / T).

    Temperature scaling (Guo et al. 2017): fit it on validation images, not on the test images.
    The NLL is convex in b = 1/T, and its derivative

        mean over images of  sum_c softmax(b f)_c f_c - f_y

    increases with b. T is its zero, found by Brent's method to a relative 1e-10. Returns None if
    the range has no zero: the NLL falls to 0 with T (all predictions are right), falls with 1/T
    (logits worse than chance) or does not depend on T (equal logits). Raises NotFinite.
    """
    from scipy.optimize import brentq

    logits = _float64(logits)
    # f_c - f_y first: in sum_c q_c f_c - f_y the digits of a perfect classifier would cancel.
    excess = logits - logits.gather(1, labels[:, None])

    def slope(log_t: float) -> float:
        q = (logits * math.exp(-log_t)).softmax(1)
        return (q * excess).sum(1).mean().item()

    low, high = (math.log(t) for t in T_RANGE)
    at_low, at_high = slope(low), slope(high)
    if at_low <= 0 or at_high >= 0:
        return None
    return math.exp(brentq(slope, low, high, xtol=1e-10, rtol=1e-12))


def _float64(logits: Tensor) -> Tensor:
    """Return the logits in float64. Raises NotFinite."""
    if bad := int((~logits.isfinite()).any(1).sum()):
        raise NotFinite(f"{bad} of {len(logits)} images have logits that are not finite")
    return logits.double()
