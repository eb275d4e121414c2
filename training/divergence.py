"""Detect a diverged step on the device, without a wait of the host in each step, and recover."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from runs import processes as distributed
from training.state import Run, checkpoint_state, restore

LARGEST = 1e8  # of a loss or metric; JEM stops at such a loss, too
SNAPSHOT_EVERY = 200  # steps, at least
SLOWER = 0.5  # factor of the learning rate at each restart


class Diverged(FloatingPointError):
    """The run has diverged. The message is one line with the step, its numbers and advice.

    `event`: the line's beginning, the step and its numbers. `details`: the rest of the line.
    """

    def __init__(self, event: str, details: str) -> None:
        super().__init__(f"{event}; {details}")
        self.event, self.details = event, details


class Guard:
    """Keep a flag on the device that the first diverged step sets: its loss, or a metric of a term
    (the term's loss, the energies of data and samples), is beyond 1e8 or not finite, or the norm of
    its gradient is not finite.

    The flag stays set and masks that step and all later steps: the optimiser reads it as
    `found_inf`, the queue and the replay buffer as `skip`. So the state stays that of the last good
    step until the host reads the flag, at the next report.

    advice: the flags to try, for the message.
    """

    def __init__(self, device: torch.device, advice: str = "try a lower --lr") -> None:
        self.device, self.advice = device, advice
        self.reset()

    def reset(self) -> None:
        self.flag = torch.zeros((), dtype=torch.bool, device=self.device)
        self.names: list[str] = []
        self.first = torch.zeros(0, dtype=torch.float64, device=self.device)  # step, norm, values

    def check(self, metrics: Mapping[str, Tensor], grad_norm: Tensor, step: int) -> Tensor:
        """Update the flag, bool (), from a step's metrics (scalars, "loss" among them) and the norm
        of its gradient. Return the flag."""
        values = torch.stack(list(metrics.values())).detach()
        bad = ~(values.abs() <= LARGEST).all() | ~grad_norm.isfinite()  # nan fails the comparison
        norm = grad_norm.to(values.dtype).reshape(1)
        record = torch.cat([torch.full_like(norm, step), norm, values]).double()
        if self.names != list(metrics):  # new with an epoch: the host has read the flag
            self.names, self.first = list(metrics), record
        self.first = torch.where(bad & ~self.flag, record, self.first)
        self.flag = self.flag | bad
        return self.flag

    def raise_if_diverged(self, checkpoint: str) -> None:
        """Wait for the device and read the flag. Raises Diverged where it is set."""
        if not self.flag:
            return
        step, grad_norm, *values = self.first.tolist()
        metrics = dict(zip(self.names, values, strict=True))
        loss = metrics.pop("loss")
        numbers = [f"loss {loss:.4g}", f"gradient norm {grad_norm:.4g}"]
        numbers += [f"{n} {v:.4g}" for n, v in metrics.items() if not abs(v) <= LARGEST]
        raise Diverged(
            f"diverged at step {step:.0f} ({', '.join(numbers)})",
            f"that step and all after it were not taken; {checkpoint}; {self.advice}",
        )


def advice(run: Run) -> str:
    """Return the advice against divergence, with flags that the run's program has."""
    if run.memory("replay_buffer") is not None:
        return "try more --n_steps, a lower --lr, --sigma .1, --warmup_iters 1000 or --sgld_l2 .1"
    if "clip_grad" in run.settings:
        return "try a lower --lr, --warmup_iters 1000 or --clip_grad 5"
    return "try a lower --lr or --warmup_iters 1000"


class Healer:
    """Restart a run that diverges, at most --max_restarts times.

    Keep two snapshots of the run's state on its device, 200 steps or more apart. A restart restores
    the older snapshot, since the steps before a divergence are seldom healthy. It halves the
    learning rate for the rest of the run, seeds the random numbers anew, and begins the diverged
    chains of the replay buffer anew. In a resumed run the older snapshot is at first the checkpoint
    before the last.
    """

    def __init__(self, run: Run) -> None:
        self.snapshots = [snapshot(run)] if run.settings.max_restarts else []
        if self.snapshots and run.previous_state is not None:
            self.snapshots.insert(0, run.previous_state)
        run.previous_state = None

    def keep(self, run: Run) -> None:
        """Take a snapshot if due. Call this only once the guard has passed the state, and not
        between the last step of an epoch and its evaluation."""
        if not self.snapshots:
            return
        if run.progress.step - self.snapshots[-1]["progress"]["step"] >= SNAPSHOT_EVERY:
            del self.snapshots[:-1]  # first, so that memory never holds three
            self.snapshots.append(snapshot(run))

    def heal(self, run: Run, error: Diverged) -> str:
        """Restart the run. Return a message about it. Raises Diverged where no restart is left."""
        restarts, limit = run.progress.restarts, run.settings.max_restarts
        if restarts >= limit:
            given_up = f"given up after {restarts} of --max_restarts {limit}; " if limit else ""
            raise Diverged(error.event, given_up + error.details) from None
        lr_scale = run.progress.lr_scale * SLOWER
        best = run.progress.best_valid  # best_valid_ckpt.pt stays
        self.snapshots = self.snapshots[:1]
        # A copy: the optimiser would go on to change the tensors that it loads.
        restore(run, copy.deepcopy(self.snapshots[0]))
        run.progress.best_valid = max(best, run.progress.best_valid)
        run.progress.restarts, run.progress.lr_scale = restarts + 1, lr_scale
        key = (run.settings.seed, run.progress.step, restarts + 1)
        rank = (distributed.rank(),) if distributed.size() > 1 else ()
        torch.manual_seed(distributed.mixed(*key, *rank))
        buffer, renewed = run.memory("replay_buffer"), ""
        if buffer is not None:
            renewed = f", {sum(distributed.all_of(buffer.renew())):,} chains begun anew"
        return (
            f"{error.event}: back to step {run.progress.step:,}, learning rate x {lr_scale:g}, new "
            f"random numbers{renewed}; restart {restarts + 1} of {limit}"
        )


def snapshot(run: Run) -> dict[str, Any]:
    """Return a copy of the run's state on its device, where copying is fast."""
    return copy.deepcopy(checkpoint_state(run))
