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
    """accuracy (0..1) and nll, the mean of -log q(y|x), over batches of (images, labels); and n.

    In eval mode, which is given back. {"n": 0} and nothing else without images.
    """
    sums, n = None, 0
    with eval_mode(model):
        for images, labels in batches:
            logits = model.logits(images)
            nll = F.cross_entropy(logits, labels, reduction="sum")
            batch = torch.stack([(logits.argmax(1) == labels).sum().double(), nll.double()])
            sums = batch if sums is None else sums + batch
            n += len(labels)
    if sums is None:
        return {"n": 0}
    correct, nll_sum = sums.tolist()
    return {"accuracy": correct / n, "nll": nll_sum / n, "n": n}
