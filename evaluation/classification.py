"""Classification by q(y|x): accuracy, top-5 accuracy and negative log-likelihood."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from models import EnergyClassifier, eval_mode
from runs import processes as distributed


def classification(
    model: EnergyClassifier, batches: Iterable[tuple[Tensor, Tensor]]
) -> dict[str, float]:
    """Return accuracy and top5 (0..1), nll, the mean of -log q(y|x) in nats, and n, the number of
    images, over batches of (images, labels).

    top5 is the share of images whose label is among the 5 classes with the largest logits (among
    all where there are fewer than 5). Of equal logits the class with the lower index ranks first,
    so that a constant model gets 5/C and not 1. Returns {"n": 0} alone without images.
    """
    logits, labels = _outputs(model, batches)
    if not len(labels):
        return {"n": 0}
    hits = logits.argsort(dim=1, descending=True, stable=True) == labels[:, None]
    nll = F.cross_entropy(logits.double(), labels, reduction="none")
    measures = {"accuracy": hits[:, 0], "top5": hits[:, :5].any(1), "nll": nll}
    means = torch.stack([values.double().mean() for values in measures.values()]).tolist()
    return {**dict(zip(measures, means, strict=True)), "n": len(labels)}


def predictions(
    model: EnergyClassifier, batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Return the logits, float32 (N, C), and labels, int64 (N,), of all batches, on the CPU."""
    logits, labels = _outputs(model, batches)
    return logits.cpu(), labels.cpu()


@torch.no_grad()
def _outputs(
    model: EnergyClassifier, batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Return the logits, float32 (N, C), and labels, int64 (N,), of all batches. In no batch does
    the host wait for the device."""
    with eval_mode(model):
        outputs = [(model.logits(images).float(), labels) for images, labels in batches]
    outputs = outputs or [(torch.empty(0), torch.empty(0))]
    all_logits, all_labels = (torch.cat(parts) for parts in zip(*outputs, strict=True))
    return distributed.joined(all_logits), distributed.joined(all_labels)


def log_odds_against(logits: Tensor, y: Tensor) -> Tensor:
    """Return log((1 - q(y|x)) / q(y|x)) = log sum over c != y of e^f_c, minus f_y: (N,) of logits
    f (N, C) and labels y (N,). It keeps its digits where q(y|x) itself is rounded to 1."""
    without_y = logits.scatter(1, y[:, None], -torch.inf)
    return without_y.logsumexp(1) - logits.gather(1, y[:, None]).squeeze(1)
