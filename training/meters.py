"""Running means of a step's metrics, kept on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Meter:
    """Mean of named scalars over steps; reading it is the only time the host waits."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.sums: Tensor | None = None  # float64, one entry a name
        self.steps = 0

    def add(self, values: Tensor, names: list[str]) -> None:
        """Add `values` (len(names),) of one step. Other names than before begin anew, but that more
        names leave out what is new: the rest of an epoch that an earlier version began."""
        if self.sums is None or not set(self.names) <= set(names):
            self.reset()
            self.names = names
        elif self.names != names:
            values = values[[names.index(name) for name in self.names]]
        self.sums = values.double() if self.sums is None else self.sums + values
        self.steps += 1

    def means(self) -> dict[str, float]:
        """{} before the first step."""
        if self.sums is None:
            return {}
        return dict(zip(self.names, (self.sums / self.steps).tolist(), strict=True))

    def reset(self) -> None:
        self.sums, self.steps = None, 0

    def state_dict(self) -> dict[str, Any]:
        sums = None if self.sums is None else self.sums.cpu()
        return {"names": self.names, "sums": sums, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self.names, self.steps = list(state["names"]), int(state["steps"])
        self.sums = None if state["sums"] is None else state["sums"].to(device)
