"""Gather a batch that is divided over processes, for the contrastive terms."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def alone() -> bool:
    return not dist.is_initialized() or dist.get_world_size() == 1


def gathered(part: Tensor) -> Tensor:
    """Return (N, ...) of all processes, by rank and without gradient, from the (N / processes, ...)
    of each. All parts have one length. Of a single process, return the part itself."""
    if alone():
        return part.detach()
    found = [torch.empty_like(part) for _ in range(dist.get_world_size())]
    dist.all_gather(found, part.detach().contiguous())
    return torch.cat(found)


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        return gathered(part)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def gathered_with_gradient(part: Tensor) -> Tensor:
    """Return the same with a gradient. A part takes the sum of its gradients from the losses of all
    processes, so that the mean of the processes' gradients is the gradient of their mean loss."""
    return part if alone() else _WithGradient.apply(part)
