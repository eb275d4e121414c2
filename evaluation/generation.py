"""Are the samples as good as images? Frechet distance (FID) and Inception Score.

Both read samples through a feature extractor, and their numbers compare only with numbers of the
same extractor, number of samples and reference. Samples are rounded to 8 bits first (`to_uint8`),
as an image file would.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data import to_float
from data.images import resize_batch
from evaluation.neighbours import neighbour_radii, precision_recall
from models import EnergyClassifier, eval_mode
from runs.cli import UsageError

# uint8 (n, H, W, 3), n <= BATCH -> features (n, D), class probabilities (n, C), of any float type.
Extractor = Callable[[Tensor], tuple[Tensor, Tensor]]

BATCH = 100  # images that an extractor is given at once
SCORE_ORDER = 2020  # torch-fidelity's seed for the order of the samples; the reference's halves too
DECLINE = 0.05  # of the best FID: what is more is a decline


def inception_score(probabilities: Tensor, splits: int = 10) -> tuple[float, float]:
    """Return mean and deviation over splits of exp(mean_x KL(p(y|x) || p(y))), each in 1..C.

    Salimans et al. (2016). probabilities (N, C), N >= splits, computed in float64; p(y) is the
    split's mean. Splits are consecutive, of N // splits samples or one more; the deviation is the
    population's (divided by `splits`), as in the literature. Samples sorted by class need shuffling
    first, since a split that shows one class alone scores 1: see `evaluate_samples`.
    """
    n = len(probabilities)
    bounds = [i * n // splits for i in range(splits + 1)]
    p = probabilities.detach().to("cpu", torch.float64)
    scores = torch.empty(splits, dtype=torch.float64)
    for i in range(splits):
        part = p[bounds[i] : bounds[i + 1]]
        divergence = torch.xlogy(part, part) - torch.xlogy(part, part.mean(0))  # 0 log 0 = 0
        scores[i] = divergence.sum(1).mean().exp()
    return scores.mean().item(), scores.std(correction=0).item()


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean (D,) and unbiased covariance (D, D) of features (N, D), N and D above 1, in
    float64 on the CPU."""
    x = features.detach().to("cpu", torch.float64)
    return x.mean(0), x.T.cov()


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """Return the squared Frechet (2-Wasserstein) distance of two Gaussians, 0 or above.

        |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

    Dowson & Landau (1982); of Inception's features it is the FID of Heusel et al. (2017). Means
    (D,) and covariances (D, D) as `moments` returns them.

    With S = A A', the last trace is the sum of the singular values of A1' A2. Unlike the square
    roots of the eigenvalues of S1 S2, they carry an eigenvalue's rounding of 1e-16 as it is and
    not as its root: covariances without full rank lose no digits.
    """
    root_trace = torch.linalg.svdvals(_factor(cov1).T @ _factor(cov2)).sum()
    distance = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * root_trace
    return max(0.0, distance.item())


def _factor(cov: Tensor) -> Tensor:
    """Return A (D, rank) with A A' = cov, without eigenvalues that are 0 but for rounding."""
    values, vectors = torch.linalg.eigh(cov)
    kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, kept] * values[kept].sqrt()


def model_extractor(model: EnergyClassifier) -> Extractor:
    """Return an extractor of a classifier's penultimate features and q(y|x) of images that are
    resized to its size. Distances are then its own: name its checkpoint beside them."""
    device = next(model.parameters()).device

    @torch.no_grad()
    def extract(images: Tensor) -> tuple[Tensor, Tensor]:
        with eval_mode(model):
            x = to_float(resize_batch(images.to(device), model.image_size))
            features = model.features(x)
            return features, model.logits_from(features).double().softmax(1)

    return extract


def read(images: Tensor, extractor: Extractor) -> tuple[Tensor, Tensor]:
    """Return the features (N, D) of images uint8 (N, H, W, 3), and their class probabilities (N, C)
    on the CPU. Raises UsageError for features that are not finite."""
    found = [extractor(batch) for batch in images.split(BATCH)]
    features = torch.cat([each for each, _ in found])
    if not features.isfinite().all():
        raise UsageError(
            "--fid_features: the features are not finite: give a model that has not diverged"
        )
    return features, torch.cat([each for _, each in found]).cpu()


def evaluate_samples(
    chains: Mapping[int | None, Tensor],
    steps: int | None,
    reference: Tensor,
    extractor: Extractor,
    *,
    score_part: Tensor | None = None,
    splits: int = 10,
) -> dict[str, Any]:
    """Compute the FID of samples against reference images, and the Inception Score of `score_part`.

    chains: images uint8 (N, H, W, 3) of the same chains by their number of SGLD steps, 0: their
    starts, None: unknown; the samples are those after `steps`. reference uint8 (M, H, W, 3);
    `score_part` uint8 (K, H, W, 3), by default the samples. The score's splits are made in the
    order of torch-fidelity, a fixed permutation, so that samples sorted by class are no trap.

    Returns fid, inception_score_mean, inception_score_std, splits, n = N, n_reference = M,
    n_score = K, n_features = D, full_rank: whether N and M exceed D (else the FID depends on them
    even more than it always does), and `rows`, those of `compared`. Raises UsageError for fewer
    than 2 samples or 4 reference images, fewer scored than splits, and features that are not
    finite.
    """
    scored = chains[steps] if score_part is None else score_part
    for what, n, least in (
        ("samples", len(chains[steps]), 2),
        ("reference images", len(reference), 4),
        ("samples to score", len(scored), splits),
    ):
        if n < least:
            raise UsageError(f"--eval fid: {n} {what} are too few: give {least} or more")
    found = {at: read(images, extractor) for at, images in chains.items()}
    features = {at: each for at, (each, _) in found.items()}
    ours, theirs = features[steps], read(reference, extractor)[0]
    probabilities = (found[steps] if score_part is None else read(score_part, extractor))[1]
    order = torch.from_numpy(np.random.RandomState(SCORE_ORDER).permutation(len(scored)))
    mean, std = inception_score(probabilities[order], splits)
    return {
        "fid": frechet_distance(*moments(ours), *moments(theirs)),
        "inception_score_mean": mean,
        "inception_score_std": std,
        "splits": splits,
        "n": len(ours),
        "n_reference": len(theirs),
        "n_score": len(scored),
        "n_features": ours.shape[1],
        "full_rank": min(len(ours), len(theirs)) > ours.shape[1],
        "rows": compared(features, theirs),
    }


def compared(chains: Mapping[int | None, Tensor], reference: Tensor) -> list[dict[str, Any]]:
    """Compare features (N, D) of chains, by their number of SGLD steps, with one half of the
    reference's (M, D); and the other half, whose values are the best that a sampler can have.

    A row has images ("starts" after 0 steps, "samples", "reference images"), steps, n, fid,
    precision and recall (k = 3; None for fewer than 4 images). To be comparable, all rows are
    of n = min(N, M // 2) images against as many: the first n of a set and, of the reference in a
    fixed random order, the first n and the next n. Rows are in the order of their steps.
    """
    n = min(len(reference) // 2, *map(len, chains.values()))
    order = torch.from_numpy(np.random.RandomState(SCORE_ORDER).permutation(len(reference)))
    order = order.to(reference.device)
    half, other = reference[order[:n]], reference[order[n : 2 * n]]
    half_moments = moments(half)
    radii = neighbour_radii(half) if n > 3 else None

    def row(images: str, steps: int | None, each: Tensor) -> dict[str, Any]:
        precision, recall = precision_recall(each, half, radii=radii)
        fid = frechet_distance(*moments(each), *half_moments)
        numbers = {"fid": fid, "precision": precision, "recall": recall}
        return {"images": images, "steps": steps, "n": n, **numbers}

    rows = [
        row("starts" if steps == 0 else "samples", steps, chains[steps][:n])
        for steps in sorted(chains, key=lambda steps: steps or 0)
    ]
    return [*rows, row("reference images", None, other)]


def decline(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Return a line if the FID of `compared`'s rows rises, after its lowest, by more than DECLINE
    of it: chains then leave the images again. Otherwise return None."""
    chains = [row for row in rows if row["steps"] is not None]
    best = min(chains, key=lambda row: row["fid"])
    worst = max((r for r in chains if r["steps"] >= best["steps"]), key=lambda row: row["fid"])
    if worst["fid"] <= (1 + DECLINE) * best["fid"]:
        return None
    return (
        f"the chains get worse: their FID is lowest after {best['steps']} steps, "
        f"{best['fid']:.4g}, and {worst['fid']:.4g} after {worst['steps']}"
    )


def read_as_asked(
    classifier: Extractor, samples: Tensor, starts: Tensor | None, labels: Tensor
) -> dict[str, Any]:
    """Return the shares of class-conditional samples uint8 (N, H, W, 3), and of their starts if
    they have any, that a classifier reads as the class that was asked for, labels (N,), overall and
    per class."""
    labels = labels.cpu()
    sets = {"samples": samples} if starts is None else {"samples": samples, "starts": starts}
    right = {n: (read(x, classifier)[1].argmax(1) == labels).double() for n, x in sets.items()}
    per_class = [
        {"class": y, "n": int((labels == y).sum())}
        | {name: float(each[labels == y].mean()) for name, each in right.items()}
        for y in labels.unique().tolist()
    ]
    return {**{name: float(each.mean()) for name, each in right.items()}, "per_class": per_class}
