"""The learning rate as a pure function of where the run is."""

from __future__ import annotations

from collections.abc import Sequence


def learning_rate(
    base: float,
    *,
    step: int,
    epoch: int,
    warmup_iters: int,
    decay_epochs: Sequence[int],
    decay_rate: float,
) -> float:
    """base * min(1, step / warmup_iters) * decay_rate^(decay epochs passed).

    Steps and epochs count from 0, over the whole run; decay epoch e is passed from epoch e on.
    warmup_iters <= 0: no warm-up. A run that starts or resumes anywhere gets the right rate.
    """
    warmup = min(1.0, step / warmup_iters) if warmup_iters > 0 else 1.0
    return base * warmup * decay_rate ** sum(epoch >= decay for decay in decay_epochs)
