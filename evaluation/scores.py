"""Scores: a number for each image, the higher, the more it looks like the training images.

Shapes: N images, C classes, D features, M images in the bank of nearest neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation import NotFinite
from losses import Contrastive
from models import EnergyClassifier, eval_mode, sampling_mode
from runs import processes as distributed

TRUE_POSITIVES = 0.95  # true positive rate at which the false positive rate is measured
LARGEST = 2**25  # similarities of `knn` in memory at once: 256 MiB in float64

# Scores that are functions of the logits (N, C), in float64.
OF_LOGITS: dict[str, Callable[[Tensor], Tensor]] = {
    "py": lambda logits: logits.log_softmax(1).amax(1).exp(),
    "pxy": lambda logits: logits.amax(1),
    "entropy": lambda logits: -torch.special.entr(logits.softmax(1)).sum(1),
    "px_logits": lambda logits: logits.logsumexp(1),
}


def scores(
    model: EnergyClassifier,
    batches: Iterable[tuple[Tensor, Tensor]],
    names: Sequence[str],
    *,
    contrastive: Contrastive | None = None,
    bank: Tensor | None = None,
    k: int = 50,
) -> dict[str, np.ndarray]:
    """Return {name: float64 (N,)} for every name, from one forward pass of each (images, labels).

        px       log q(x), up to log Z; = LSE_c f(x)[c] unless `uncond`       any real number
        px_logits  LSE_c f(x)[c], with `uncond` too                           any real number
        py       max_y q(y|x): Hendrycks & Gimpel (2017)                      (0, 1]
        pxy      max_y log q(x, y), up to log Z: the largest logit; with `uncond`
                 log q(x) + max_y log q(y|x)                                  any real number
        pxgrad   -log ||d log q(x) / dx||_2, x in [-1, 1]: ranks as JEM's approximate mass, which
                 has no logarithm                                             any real number
        pxsim    log K - loss[n] of the contrastive term, K the filled slots of its queue and y the
                 predicted class, never the label: how much likelier x is than the queue's mean
        knn      -||z - z_k||_2, z the features divided by their length and z_k the k-th nearest in
                 `bank`: Sun et al., "Out-of-distribution detection with deep nearest neighbors"
                 (2022)                                                       [-2, 0]
        entropy  sum_y q(y|x) log q(y|x): minus the entropy, in nats          [-log C, 0]

    Softmax, logsumexp and distances are taken in float64: in float32 every confident image has
    py = 1. The model is in eval mode and its parameters take no gradient.

    Arguments:
        batches: images (n, 3, H, W) on the model's device, and labels, which are not used.
        contrastive: the term, with the queue of the checkpoint, that `pxsim` needs.
        bank: (M, D) that `knn` needs, see `feature_bank`. An image that is itself in the bank
            is its own first neighbour.
        k: the neighbour's rank, 1 to M.
    """
    unit_bank = None if bank is None or "knn" not in names else F.normalize(bank.double(), dim=1)
    parts = _scores_of_batches(model, batches, "pxgrad" in names, unit_bank, k)
    empty = next(model.parameters()).new_empty(0)
    values = {n: distributed.joined(torch.cat(p) if p else empty) for n, p in parts.items()}
    logits = values.pop("logits")
    with torch.no_grad():
        values |= {n: score(logits) for n, score in OF_LOGITS.items() if n in names}
        if "pxy" in names and model.energy_output is not None:
            values["pxy"] = values["px"] + logits.log_softmax(1).amax(1)
        if "pxsim" in names:
            assert contrastive is not None
            # All images in one call: each call sums over a queue of raw logits anew.
            log_k = contrastive.memories["queue"].queue_filled.double().log()
            values["pxsim"] = log_k - contrastive.per_image(logits, logits.argmax(1))
    return {name: values[name].cpu().numpy() for name in names}


def _scores_of_batches(
    model: EnergyClassifier,
    batches: Iterable[tuple[Tensor, Tensor]],
    gradient: bool,
    unit_bank: Tensor | None,
    k: int,
) -> dict[str, list[Tensor]]:
    """Return by name each batch's logits (n, C), px (n,) and, if needed, pxgrad and knn (n,)."""
    parts: dict[str, list[Tensor]] = {"logits": [], "px": []}
    parts |= {name: [] for name, on in (("pxgrad", gradient), ("knn", unit_bank is not None)) if on}
    with sampling_mode(model), torch.set_grad_enabled(gradient):
        for images, _ in batches:
            x = images.detach().requires_grad_(gradient)
            features = model.features(x)
            logits = model.logits_from(features).double()
            log_px = model.log_px_from(features, logits)
            if gradient:
                (slope,) = torch.autograd.grad(log_px.sum(), x)
                norm = slope.double().flatten(1).norm(dim=1)
                # A gradient of 0 gets the largest finite score, not an infinite one.
                parts["pxgrad"].append(-norm.clamp_min(torch.finfo(torch.float32).tiny).log())
            if unit_bank is not None:
                parts["knn"].append(-kth_distance(features.detach(), unit_bank, k))
            parts["px"].append(log_px.detach().double())
            parts["logits"].append(logits.detach())
    return parts


@torch.no_grad()
def feature_bank(model: EnergyClassifier, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the penultimate features of all images, float32 (M, D), each divided by its length."""
    with eval_mode(model):
        parts = [F.normalize(model.features(images).float(), dim=1) for images, _ in batches]
    empty = model.class_output.weight.new_empty(0, model.f.num_features)
    return distributed.joined(torch.cat(parts) if parts else empty)


def kth_distance(features: Tensor, unit_bank: Tensor, k: int) -> Tensor:
    """Return ||z - z_k||_2 (n,), float64 in [0, 2], of features z (n, D), divided by their length,
    and their k-th nearest z_k in `unit_bank` (M, D), whose rows have length 1.

    Computed as ||a - b||^2 = 2 - 2 a.b in float64: in float32 this loses all but the first 3 digits
    of a small distance. Images are taken in chunks, so that (n, M) stays small for any bank.
    """
    rows = max(1, LARGEST // len(unit_bank))
    z = F.normalize(features.double(), dim=1)
    nearest = [(part @ unit_bank.T).topk(k, dim=1).values[:, -1] for part in z.split(rows)]
    return (2 - 2 * torch.cat(nearest)).clamp(0, 4).sqrt()


def detection(score_in: np.ndarray, score_out: np.ndarray) -> dict[str, float | int]:
    """Return {auroc, fpr95, aupr, n_in, n_out} of scores (n_in,) and (n_out,), which should be
    higher for in-distribution images.

        auroc  P(in > out) + P(in = out) / 2                                             0..1
        fpr95  the smallest share of out-of-distribution images that score >= t, over
               thresholds t that at least 95 % of the in-distribution images reach       0..1
        aupr   average precision, in-distribution positive: the sum over thresholds of
               precision times the gain in recall. By chance n_in / (n_in + n_out), so it
               compares only at the same ratio n_in : n_out                              0..1

    Computed by ranks in float64, so nothing depends on the scores' scale or offset; equal scores
    share one threshold. Raises NotFinite.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    inside, outside = checked(score_in, "in-distribution"), checked(score_out, "OOD")
    score = np.concatenate([inside, outside])
    positive = np.repeat([True, False], [len(inside), len(outside)])
    # By default roc_curve drops thresholds between the corners of the curve; fpr95 needs them.
    false_rate, true_rate, _ = roc_curve(positive, score, drop_intermediate=False)
    return {
        "auroc": float(roc_auc_score(positive, score)),
        "fpr95": float(false_rate[true_rate >= TRUE_POSITIVES].min()),
        "aupr": float(average_precision_score(positive, score)),
        "n_in": len(inside),
        "n_out": len(outside),
    }


def openood_detection(score_in: np.ndarray, score_out: np.ndarray) -> dict[str, float]:
    """Return OpenOOD v1.5's metrics in per cent; arguments and Raises as `detection`.

    FPR@95    the share of in-distribution images taken for OOD, at the first corner of the ROC
              curve where 95 % of the OOD images are taken for OOD; `detection` has the reverse
    AUROC     as `detection`
    AUPR_IN   area under the precision-recall curve, by trapezoids; in-distribution positive
    AUPR_OUT  the same; OOD positive
    """
    from sklearn.metrics import auc, precision_recall_curve, roc_curve

    inside, outside = checked(score_in, "in-distribution"), checked(score_out, "OOD")
    score, ood = np.concatenate([inside, outside]), np.repeat([0, 1], [len(inside), len(outside)])
    false_rate, true_rate, _ = roc_curve(ood, -score)
    precision_in, recall_in, _ = precision_recall_curve(1 - ood, score)
    precision_out, recall_out, _ = precision_recall_curve(ood, -score)
    metrics = {
        "FPR@95": false_rate[np.argmax(true_rate >= TRUE_POSITIVES)],
        "AUROC": auc(false_rate, true_rate),
        "AUPR_IN": auc(recall_in, precision_in),
        "AUPR_OUT": auc(recall_out, precision_out),
    }
    return {name: 100 * float(value) for name, value in metrics.items()}


def checked(score: np.ndarray, kind: str) -> np.ndarray:
    """Return the scores in float64. Raises NotFinite."""
    values = np.asarray(score, dtype=np.float64)
    if bad := np.count_nonzero(~np.isfinite(values)):
        raise NotFinite(f"{bad} of {values.size} {kind} scores are not finite")
    return values
