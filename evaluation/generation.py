"""Quality of samples: Frechet distance (FID), Inception Score, precision and recall.

All are computed from a feature extractor's outputs, and compare only with numbers of the same
extractor, number of samples and reference. Samples are rounded to 8 bits first (`to_uint8`), as in
an image file.
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

BATCH = 100  # images of one call of an extractor
SCORE_ORDER = 2020  # torch-fidelity's seed of the samples' order; also for the reference's halves
DECLINE = 0.05  # rise of the FID after its minimum, relative to the minimum, that `decline` reports


def inception_score(probabilities: Tensor, splits: int = 10) -> tuple[float, float]:
    """Return mean and deviation over splits of exp(mean_x KL(p(y|x) || p(y))), each in 1..C.

    Salimans et al. (2016). probabilities (N, C), N >= splits, computed in float64; p(y) is the
    split's mean. Splits are consecutive, of N // splits samples or one more; the deviation divides
    by `splits`, as in the literature. Shuffle samples that are sorted by class, as
    `evaluate_samples` does: a split with a single class scores 1.
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
    roots of the eigenvalues of S1 S2, they carry an eigenvalue's rounding error of 1e-16 itself
    and not its root: covariances without full rank lose no digits.
    """
    root_trace = torch.linalg.svdvals(_factor(cov1).T @ _factor(cov2)).sum()
    distance = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * root_trace
    return max(0.0, distance.item())


def _factor(cov: Tensor) -> Tensor:
    """Return A (D, rank) with A A' = cov, without the eigenvalues that are 0 up to rounding."""
    values, vectors = torch.linalg.eigh(cov)
    nonzero = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, nonzero] * values[nonzero].sqrt()


def model_extractor(model: EnergyClassifier) -> Extractor:
    """Return an extractor of a classifier's penultimate features and q(y|x); it resizes images to
    the model's size. An FID in these features is to be reported with the model's checkpoint."""
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
    outputs = [extractor(batch) for batch in images.split(BATCH)]
    features, probabilities = (torch.cat(parts) for parts in zip(*outputs, strict=True))
    if not features.isfinite().all():
        raise UsageError(
            "--fid_features: the features are not finite: give a model that has not diverged"
        )
    return features, probabilities.cpu()


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

    chains: number of SGLD steps -> images uint8 (N, H, W, 3) of the same chains after so many; 0:
    their starts, None: an unknown number. The samples are chains[steps]. reference uint8
    (M, H, W, 3); `score_part` uint8 (K, H, W, 3), by default the samples. The score's images are
    permuted first, in torch-fidelity's order, since samples may be sorted by class.

    Returns fid, inception_score_mean, inception_score_std, splits, n = N, n_reference = M,
    n_score = K, n_features = D, full_rank: whether N and M exceed D (else the FID depends on N and
    M even more than it always does), and `rows` of `compared`. Raises UsageError for fewer than 2
    samples or 4 reference images, fewer scored images than splits, and features that are not
    finite.
    """
    scored = chains[steps] if score_part is None else score_part
    for kind, n, least in (
        ("samples", len(chains[steps]), 2),
        ("reference images", len(reference), 4),
        ("samples to score", len(scored), splits),
    ):
        if n < least:
            raise UsageError(f"--eval fid: {n} {kind} are too few: give {least} or more")
    outputs = {step: read(images, extractor) for step, images in chains.items()}
    features = {step: x for step, (x, _) in outputs.items()}
    sample_features, reference_features = features[steps], read(reference, extractor)[0]
    probabilities = (outputs[steps] if score_part is None else read(score_part, extractor))[1]
    order = torch.from_numpy(np.random.RandomState(SCORE_ORDER).permutation(len(scored)))
    mean, std = inception_score(probabilities[order], splits)
    return {
        "fid": frechet_distance(*moments(sample_features), *moments(reference_features)),
        "inception_score_mean": mean,
        "inception_score_std": std,
        "splits": splits,
        "n": len(sample_features),
        "n_reference": len(reference_features),
        "n_score": len(scored),
        "n_features": sample_features.shape[1],
        "full_rank": min(len(sample_features), len(reference_features)) > sample_features.shape[1],
        "rows": compared(features, reference_features),
    }


def compared(chains: Mapping[int | None, Tensor], reference: Tensor) -> list[dict[str, Any]]:
    """Compare features (N, D) of chains, by their number of SGLD steps, with one half of the
    reference's features (M, D). Compare the other half with it, too: the best possible values.

    A row has images ("starts" after 0 steps, "samples", "reference images"), steps, n, fid,
    precision and recall (k = 3; None for fewer than 4 images). To be comparable, all rows are
    of n = min(N, M // 2) images against as many: the first n of the chains and, of the reference in
    a fixed random order, the first n and the next n. Rows are in the order of their steps.
    """
    n = min(len(reference) // 2, *map(len, chains.values()))
    order = torch.from_numpy(np.random.RandomState(SCORE_ORDER).permutation(len(reference)))
    order = order.to(reference.device)
    half, other_half = reference[order[:n]], reference[order[n : 2 * n]]
    half_moments = moments(half)
    radii = neighbour_radii(half) if n > 3 else None

    def row(images: str, steps: int | None, features: Tensor) -> dict[str, Any]:
        precision, recall = precision_recall(features, half, radii=radii)
        fid = frechet_distance(*moments(features), *half_moments)
        numbers = {"fid": fid, "precision": precision, "recall": recall}
        return {"images": images, "steps": steps, "n": n, **numbers}

    rows = [
        row("starts" if steps == 0 else "samples", steps, chains[steps][:n])
        for steps in sorted(chains, key=lambda steps: steps or 0)
    ]
    return [*rows, row("reference images", None, other_half)]


def decline(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Return a warning if the FID of `compared`'s rows rises again, with more steps, by more than
    DECLINE times its minimum: such chains move away from real images. Otherwise return None."""
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
    """Return the share of class-conditional samples uint8 (N, H, W, 3), and of their starts if
    given, that a classifier reads as the requested class, labels (N,): overall and per class."""
    labels = labels.cpu()
    sets = {"samples": samples} if starts is None else {"samples": samples, "starts": starts}
    hits = {n: (read(x, classifier)[1].argmax(1) == labels).double() for n, x in sets.items()}
    per_class = [
        {"class": y, "n": int((labels == y).sum())}
        | {name: float(hit[labels == y].mean()) for name, hit in hits.items()}
        for y in labels.unique().tolist()
    ]
    return {**{name: float(hit.mean()) for name, hit in hits.items()}, "per_class": per_class}
