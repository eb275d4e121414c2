"""How well a score tells in-distribution images from others."""

from __future__ import annotations

import numpy as np

TRUE_POSITIVES = 0.95  # of the in-distribution images, for `fpr95`


def detection(score_in: np.ndarray, score_out: np.ndarray) -> dict[str, float | int]:
    """{auroc, fpr95, aupr, n_in, n_out} of scores (n_in,) and (n_out,), higher = in-distribution.

        auroc  P(in > out) + P(in = out) / 2                                             0..1
        fpr95  the smallest share of out-of-distribution images that score >= t, over
               thresholds t that at least 95 % of the in-distribution images reach       0..1
        aupr   average precision, in-distribution positive: the sum over thresholds of
               precision times the gain in recall. By chance n_in / (n_in + n_out), so it
               compares only at the same ratio n_in : n_out                              0..1

    Computed by ranks in float64, so nothing depends on the scores' scale or offset; equal scores
    share one threshold. Raises ValueError, one line, for an empty or a non-finite score.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    inside, outside = checked(score_in, "in-distribution"), checked(score_out, "OOD")
    score = np.concatenate([inside, outside])
    positive = np.concatenate([np.ones(len(inside), bool), np.zeros(len(outside), bool)])
    # Without drop_intermediate=False thresholds that no corner of the curve needs are left out.
    false_rate, true_rate, _ = roc_curve(positive, score, drop_intermediate=False)
    return {
        "auroc": float(roc_auc_score(positive, score)),
        "fpr95": float(false_rate[true_rate >= TRUE_POSITIVES].min()),
        "aupr": float(average_precision_score(positive, score)),
        "n_in": len(inside),
        "n_out": len(outside),
    }


def checked(score: np.ndarray, kind: str) -> np.ndarray:
    """The scores in float64."""
    values = np.asarray(score, dtype=np.float64)
    bad = np.count_nonzero(~np.isfinite(values))
    if values.size == 0:
        raise ValueError(f"there are no {kind} scores")
    if bad:
        raise ValueError(f"{bad} of {values.size} {kind} scores are not finite")
    return values
