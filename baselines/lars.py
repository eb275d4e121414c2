"""LARS: a learning rate for every layer (You, Gitman and Ginsburg 2017)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

MOMENTUM, ETA = 0.9, 0.001  # `momentum` and `eta` in the formula below


class LARS(torch.optim.Optimizer):
    """SGD with momentum; the step of each layer is scaled to the norm of the layer's weights.

        trust = eta ||w|| / (||g|| + weight_decay ||w||)     1 where either norm is 0
        v <- momentum v + lr trust (g + weight_decay w)
        w <- w - v

    Algorithm 1 of the paper. Biases and the weights of norm layers - parameters with at most one
    axis longer than 1 - get neither weight decay nor the trust ratio, as is usual (SimCLR,
    SupContrast): plain SGD with momentum updates them.
    `found_inf`: a tensor on the device; unless it is 0, `step` changes nothing, as in torch's fused
    optimisers. The host does not wait for the device.
    """

    def __init__(self, params: Iterable[Any], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.found_inf = torch.zeros((), device=self.param_groups[0]["params"][0].device)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient. `closure` is not used."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group)

    def _update(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        if max(p.shape, default=1) < p.numel():  # neither a bias nor a norm layer's weight
            decay, w_norm, g_norm = group["weight_decay"], p.norm(), gradient.norm()
            trust = ETA * w_norm / (g_norm + decay * w_norm)
            trust = torch.where((w_norm > 0) & (g_norm > 0), trust, 1.0)
            gradient = trust * (gradient + decay * p)
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        velocity: Tensor = state["momentum"]
        new_velocity = MOMENTUM * velocity + group["lr"] * gradient
        skip = self.found_inf.bool()  # 0 * nan is nan: select with `where`, do not multiply
        p.copy_(torch.where(skip, p, p - new_velocity))
        velocity.copy_(torch.where(skip, velocity, new_velocity))
