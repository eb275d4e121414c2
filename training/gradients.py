"""The size of each term's gradient, and its angle with that of cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from runs import processes as distributed

REFERENCE = "pyxce"  # cosines are against this term's gradient


def term_gradients(losses: dict[str, Tensor], parameters: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return of each term's loss L, before its weight, '<term>/gradient', the L2 norm of
    dL/dparameters, and '<term>/cosine' with the gradient of cross-entropy, if that is a term.

    Scalars on the device. The graph stays, no .grad is touched and no random number is drawn, so
    the training step that follows is the same to the bit. A norm of 0 has the cosine 0.
    """
    flat = {}
    for name, loss in losses.items():
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        own = torch.cat(
            [
                (torch.zeros_like(p) if g is None else g).flatten().float()
                for p, g in zip(parameters, found, strict=True)
            ]
        )
        flat[name] = distributed.mean(own)  # of the whole batch
    measured = {f"{name}/gradient": gradient.norm() for name, gradient in flat.items()}
    if REFERENCE in flat:
        for name, gradient in flat.items():
            if name != REFERENCE:
                cosine = torch.cosine_similarity(gradient, flat[REFERENCE], dim=0)
                measured[f"{name}/cosine"] = cosine
    return measured
