"""Notice a diverged step on the device, without the host waiting for every step."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_LOSS = 1e8  # JEM stops there too
ADVICE = "try more --n_steps, a lower --lr, --sigma .1, --warmup_iters 1000 or --sgld_l2 .1"


class Diverged(FloatingPointError):
    """The run has diverged; the message is one line that says where, and what to try."""


class Guard:
    """A flag that is set by the first step with |loss| > 1e8, or a loss or gradient not finite.

    It stays set: that step and all later ones are masked (the optimiser takes the flag as its
    `found_inf`, the queue and the replay buffer as `skip`), so the state stays that of the last
    good step until the host looks, at the next report.

    `advice`: what to try, for the message; the default is about flags of train_wrn.py.
    """

    def __init__(self, device: torch.device, advice: str = ADVICE) -> None:
        self.advice = advice
        self.flag = torch.zeros((), dtype=torch.bool, device=device)
        self.first = torch.zeros(3, dtype=torch.float64, device=device)  # step, loss, gradient norm

    def check(self, loss: Tensor, grad_norm: Tensor, step: int) -> Tensor:
        """The flag (), after this step's loss and gradient norm (both ())."""
        loss = loss.detach()
        bad = ~(loss.abs() <= LARGEST_LOSS) | ~grad_norm.isfinite()  # nan fails the comparison
        found = torch.stack([torch.full_like(loss, step), loss, grad_norm.to(loss.dtype)])
        self.first = torch.where(bad & ~self.flag, found.double(), self.first)
        self.flag = self.flag | bad
        return self.flag

    def raise_if_diverged(self, checkpoint: str) -> None:
        """Reads the flag (a host synchronisation). Raises Diverged."""
        if not self.flag:
            return
        step, loss, grad_norm = self.first.tolist()
        raise Diverged(
            f"diverged at step {step:.0f} (loss {loss:.4g}, gradient norm {grad_norm:.4g}); that "
            f"step and all after it were not taken; {checkpoint}; {self.advice}"
        )
