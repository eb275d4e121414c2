"""Classification by q(y|x): accuracy, top-5 accuracy and negative log-likelihood."""

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
    all where there are fewer than 5). Of equal logits the class with the lower index ranks first,
    so that a constant model gets 5/C and not 1. Returns {"n": 0} alone without images.
    """
    rows = []
    with eval_mode(model):
        for images, labels in batches:
            logits = model.logits(images)
            correct = logits.argmax(1) == labels
            nll = F.cross_entropy(logits, labels, reduction="sum")
            measures = (correct, _in_top(5, logits, labels), nll, torch.ones_like(labels))
            rows.append(torch.stack([x.sum().double() for x in measures]))
    table = distributed.joined(torch.stack(rows) if rows else torch.empty(0, 4))
    if not len(table):
        return {"n": 0}
    n_correct, n_top5, nll_sum, n = map(sum, zip(*table.tolist(), strict=True))
    return {"accuracy": n_correct / n, "top5": n_top5 / n, "nll": nll_sum / n, "n": int(n)}


@torch.no_grad()
def predictions(
    model: EnergyClassifier, batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Return the logits, float32 (N, C), and labels, int64 (N,), of all batches, on the CPU."""
    with eval_mode(model):
        outputs = [(model.logits(images).float(), labels) for images, labels in batches]
    outputs = outputs or [(torch.empty(0), torch.empty(0))]
    # .cpu() once, after all batches: in each batch it would wait for the device.
    all_logits, all_labels = (torch.cat(parts).cpu() for parts in zip(*outputs, strict=True))
    return distributed.joined(all_logits), distributed.joined(all_labels)


def log_odds_against(logits: Tensor, y: Tensor) -> Tensor:
    """Return log((1 - q(y|x)) / q(y|x)) = log sum over c != y of e^f_c, minus f_y: (N,) of logits
    f (N, C) and labels y (N,). It keeps its digits where q(y|x) itself is rounded to 1."""
    without_y = logits.scatter(1, y[:, None], -torch.inf)
    return without_y.logsumexp(1) - logits.gather(1, y[:, None]).squeeze(1)


def _in_top(k: int, logits: Tensor, labels: Tensor) -> Tensor:
    """Return whether fewer than k classes rank before the label, bool (N,). NaN ranks first."""
    label_logit = logits.gather(1, labels[:, None])
    lower_index = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    before = ~(logits <= label_logit) | ((logits == label_logit) & lower_index)
    return before.sum(1) < k
