"""How well q(y|x) classifies."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from models import EnergyClassifier, eval_mode


@torch.no_grad()
def classification(
    model: EnergyClassifier, batches: Iterable[tuple[Tensor, Tensor]]
) -> dict[str, float]:
    """accuracy and top5 (0..1) and nll, the mean of -log q(y|x) in nats, over batches of
    (images, labels); and n, the number of images.

    top5 is the share of images whose label is among the 5 classes with the largest logits (among
    all where there are fewer than 5). Of equal logits the class with the lower index comes first,
    so that a model that tells nothing apart gets 5/C and not 1.
    In eval mode, which is given back. {"n": 0} and nothing else without images.
    """
    sums, n = None, 0
    with eval_mode(model):
        for images, labels in batches:
            logits = model.logits(images)
            correct = logits.argmax(1) == labels
            nll = F.cross_entropy(logits, labels, reduction="sum")
            batch = torch.stack([x.sum().double() for x in (correct, _top(5, logits, labels), nll)])
            sums = batch if sums is None else sums + batch
            n += len(labels)
    if sums is None:
        return {"n": 0}
    accuracy, top5, mean_nll = (total / n for total in sums.tolist())
    return {"accuracy": accuracy, "top5": top5, "nll": mean_nll, "n": n}


@torch.no_grad()
def predictions(
    model: EnergyClassifier, batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Logits, float32 (N, C), and labels, int64 (N,), of all batches, on the CPU: one pass.

    In eval mode, which is given back. Raises ValueError without images.
    """
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    with eval_mode(model):
        for images, y in batches:
            logits.append(model.logits(images).float())
            labels.append(y)
    if not logits:
        raise ValueError("there are no images to predict")
    return torch.cat(logits).cpu(), torch.cat(labels).cpu()  # moved once: no wait in every batch


def _top(k: int, logits: Tensor, labels: Tensor) -> Tensor:
    """Whether fewer than k classes come before the label, bool (N,); NaN comes before all."""
    own = logits.gather(1, labels[:, None])
    earlier = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    before = ~(logits <= own) | ((logits == own) & earlier)
    return before.sum(1) < k
