"""How well q(y|x) classifies."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from models import EnergyClassifier, eval_mode
from runs import processes as distributed


@torch.no_grad()
def classification(
    model: EnergyClassifier, batches: Iterable[tuple[Tensor, Tensor]]
) -> dict[str, float]:
    """Return accuracy and top5 (0..1), nll, the mean of -log q(y|x) in nats, and n, the number of
    images, over batches of (images, labels).

    top5 is the share of images whose label is among the 5 classes with the largest logits (among
    all where there are fewer than 5). Of equal logits the class with the lower index comes first,
    so that a model that tells nothing apart gets 5/C and not 1. Returns {"n": 0} alone without
    images.
    """
    rows = []
    with eval_mode(model):
        for images, labels in batches:
            logits = model.logits(images)
            correct = logits.argmax(1) == labels
            nll = F.cross_entropy(logits, labels, reduction="sum")
            counted = (correct, _top(5, logits, labels), nll, torch.ones_like(labels))
            rows.append(torch.stack([x.sum().double() for x in counted]))
    table = distributed.joined(torch.stack(rows) if rows else torch.empty(0, 4))
    if not len(table):
        return {"n": 0}
    right, among_5, surprise, n = map(sum, zip(*table.tolist(), strict=True))
    return {"accuracy": right / n, "top5": among_5 / n, "nll": surprise / n, "n": int(n)}


@torch.no_grad()
def predictions(
    model: EnergyClassifier, batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Return the logits, float32 (N, C), and labels, int64 (N,), of all batches, on the CPU."""
    with eval_mode(model):
        found = [(model.logits(images).float(), labels) for images, labels in batches]
    found = found or [(torch.empty(0), torch.empty(0))]
    # Moved once: no wait in every batch.
    all_logits, all_labels = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
    return distributed.joined(all_logits), distributed.joined(all_labels)


def log_odds_against(logits: Tensor, y: Tensor) -> Tensor:
    """Return log((1 - q(y|x)) / q(y|x)) = log sum over c != y of e^f_c, minus f_y: (N,) of logits
    f (N, C) and labels y (N,). Digits stay where q(y|x) itself is rounded to 1."""
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.logsumexp(1) - logits.gather(1, y[:, None]).squeeze(1)


def _top(k: int, logits: Tensor, labels: Tensor) -> Tensor:
    """Return whether fewer than k classes come before the label, bool (N,). NaN comes first."""
    own = logits.gather(1, labels[:, None])
    earlier = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    before = ~(logits <= own) | ((logits == own) & earlier)
    return before.sum(1) < k
