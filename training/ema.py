"""The running average of a network's weights (--ema)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Ema:
    """Average the parameters that are trained, and leave the others and all buffers alone.

    A step that was taken moves each average to d * average + (1 - d) * parameter, where
    d = min(decay, (1 + t) / (10 + t)) and t counts the steps taken before it: without this ramp a
    short run would keep its initial weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.decay, self.names = decay, list(trained)
        self.parameters: list[Tensor] = list(trained.values())
        self.averages = [p.detach().clone() for p in self.parameters]
        self.updates = torch.zeros((), dtype=torch.int64, device=self.parameters[0].device)

    @torch.no_grad()
    def update(self, skip: Tensor) -> None:
        """Take in the parameters after a step, unless `skip`, bool (). No host waits for it."""
        share = (9 / (10 + self.updates)).clamp(min=1 - self.decay) * ~skip  # 1 - d
        change = torch._foreach_sub(self.parameters, self.averages)
        torch._foreach_mul_(change, share)
        torch._foreach_add_(self.averages, change)
        self.updates += ~skip

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model its averages inside; afterwards it has its own weights again, exactly.

        Data are copied in place, so that a compiled network and DistributedDataParallel see them.
        """
        own = [p.detach().clone() for p in self.parameters]
        try:
            self._copy(self.averages)
            yield
        finally:
            self._copy(own)

    @torch.no_grad()
    def _copy(self, tensors: list[Tensor]) -> None:
        torch._foreach_copy_(self.parameters, tensors)

    def state_dict(self) -> dict[str, Any]:
        averages = dict(zip(self.names, self.averages, strict=True))
        return {"decay": self.decay, "updates": self.updates, "parameters": averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave. Raises ValueError for another network's."""
        own, saved = self.state_dict()["parameters"], state["parameters"]
        if [(n, t.shape) for n, t in own.items()] != [(n, t.shape) for n, t in saved.items()]:
            raise ValueError("its averaged weights are another network's")
        torch._foreach_copy_(self.averages, list(saved.values()))
        self.updates.copy_(state["updates"])
