"""LARS: a learning rate for every layer (You, Gitman and Ginsburg 2017)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose step is scaled, layer by layer, to the size of the weights.

        trust = eta ||w|| / (||g|| + weight_decay ||w||)     1 where either norm is 0
        v <- momentum v + lr trust (g + weight_decay w)
        w <- w - v

    Algorithm 1 of the paper. Biases and norms - parameters with no more than one axis longer than
    1 - take neither weight decay nor the trust ratio, as is usual (SimCLR, SupContrast): they are
    updated by plain SGD with momentum.
    `found_inf`: a tensor on the device; the step is not taken where it is set, as with torch's
    fused optimisers. Nothing here waits for the device.

    Raises ValueError for a rate, momentum, decay or eta below 0.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 0.001,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta}
        for name, value in defaults.items():
            if value < 0:
                raise ValueError(f"{name} {value} is below 0")
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the parameters that have a gradient. `closure` is not used."""
        del closure
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            norms = torch.stack(torch._foreach_norm(parameters))
            grad_norms = torch.stack(torch._foreach_norm([p.grad for p in parameters]))
            decay = group["weight_decay"]
            trust = group["eta"] * norms / (grad_norms + decay * norms)
            trust = torch.where((norms > 0) & (grad_norms > 0), trust, 1.0)
            for p, ratio in zip(parameters, trust.unbind(), strict=True):
                self._update(p, ratio, group)

    def _update(self, p: Tensor, ratio: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        velocity: Tensor = state["momentum"]
        vector = max(p.shape, default=1) == p.numel()
        step = p.grad if vector else ratio * (p.grad + group["weight_decay"] * p)
        moved = group["momentum"] * velocity + group["lr"] * step
        if self.found_inf is not None:  # a masked nan is still nan: choose, do not multiply
            skip = self.found_inf.bool()
            velocity.copy_(torch.where(skip, velocity, moved))
            p.copy_(torch.where(skip, p, p - moved))
        else:
            velocity.copy_(moved)
            p.sub_(moved)
