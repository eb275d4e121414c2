"""The learning rate as a pure function of where the run is."""

from __future__ import annotations

from collections.abc import Sequence


def learning_rate(
    base: float,
    *,
    steps_taken: int,
    epoch: int,
    warmup_iters: int,
    decay_epochs: Sequence[int],
    decay_rate: float,
) -> float:
    """base * min(1, steps_taken / warmup_iters) * decay_rate^(decay epochs passed).

    steps_taken: by this optimiser, over all processes of the run: with --start_epoch it begins at
        0, too.
    epoch: of the schedule, counted from 0; decay epoch e is passed from epoch e on.
    warmup_iters: 0 or less means no warm-up.
    """
    warmup = min(1.0, steps_taken / warmup_iters) if warmup_iters > 0 else 1.0
    return base * warmup * decay_rate ** sum(epoch >= decay for decay in decay_epochs)
