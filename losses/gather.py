"""A batch that is divided over processes, as one: what the contrastive terms see of the others."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def alone() -> bool:
    return not dist.is_initialized() or dist.get_world_size() == 1


def gathered(part: Tensor) -> Tensor:
    """(N, ...) of all processes, by rank, from (N / processes, ...) of each: equal lengths. Without
    gradient. One process: the part itself."""
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
    """The same with a gradient: each process's part gets the sum of what the losses of all of them
    say of it, so that the mean of the processes' gradients is the gradient of their mean loss."""
    return part if alone() else _WithGradient.apply(part)
