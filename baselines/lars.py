"""LARS: a learning rate for every layer (You, Gitman and Ginsburg 2017)."""

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
        self.found_inf = torch.zeros((), device=self.param_groups[0]["params"][0].device)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update once from the gradients; parameters without one stay. `closure` is not used."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group)

    def _update(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        if max(p.shape, default=1) < p.numel():  # neither bias nor norm
            decay, size, slope = group["weight_decay"], p.norm(), gradient.norm()
            trust = group["eta"] * size / (slope + decay * size)
            trust = torch.where((size > 0) & (slope > 0), trust, 1.0)
            gradient = trust * (gradient + decay * p)
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        velocity: Tensor = state["momentum"]
        moved = group["momentum"] * velocity + group["lr"] * gradient
        skip = self.found_inf.bool()  # a masked nan is still nan: choose, do not multiply
        p.copy_(torch.where(skip, p, p - moved))
        velocity.copy_(torch.where(skip, velocity, moved))
