"""Notice a diverged step on the device, without the host waiting for every step; and recover."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from runs import processes as distributed
from training.state import Run, checkpoint_state, restore

LARGEST = 1e8  # JEM stops at such a loss, too
SNAPSHOT_EVERY = 200  # steps, at least
SLOWER = 0.5  # what a restart multiplies the learning rate by


class Diverged(FloatingPointError):
    """The run has diverged; the message is one line with the step, its numbers and what to try.

    `where`: its beginning, the step and its numbers. `rest`: what follows.
    """

    def __init__(self, where: str, rest: str) -> None:
        super().__init__(f"{where}; {rest}")
        self.where, self.rest = where, rest


class Guard:
    """Keep a flag on the device that the first diverged step sets: its loss, or what a term reports
    (its own loss, the energies of data and samples), is beyond 1e8 or not finite, or its gradient
    is not finite.

    The flag stays set and masks that step and all later ones (the optimiser takes it as its
    `found_inf`, the queue and the replay buffer as `skip`), so the state stays that of the last
    good step until the host looks, at the next report.

    advice: what to try, for the message.
    """

    def __init__(self, device: torch.device, advice: str = "try a lower --lr") -> None:
        self.device, self.advice = device, advice
        self.reset()

    def reset(self) -> None:
        self.flag = torch.zeros((), dtype=torch.bool, device=self.device)
        self.names: list[str] = []
        self.first = torch.zeros(0, dtype=torch.float64, device=self.device)  # step, norm, values

    def check(self, metrics: Mapping[str, Tensor], grad_norm: Tensor, step: int) -> Tensor:
        """Return the flag, bool (), after this step's metrics (scalars, "loss" among them) and the
        norm of its gradient."""
        values = torch.stack(list(metrics.values())).detach()
        bad = ~(values.abs() <= LARGEST).all() | ~grad_norm.isfinite()  # nan fails the comparison
        norm = grad_norm.to(values.dtype).reshape(1)
        found = torch.cat([torch.full_like(norm, step), norm, values]).double()
        if self.names != list(metrics):  # a new phase of the training: the host has read the flag
            self.names, self.first = list(metrics), found
        self.first = torch.where(bad & ~self.flag, found, self.first)
        self.flag = self.flag | bad
        return self.flag

    def raise_if_diverged(self, checkpoint: str) -> None:
        """Read the flag, which waits for the device. Raises Diverged where it is set."""
        if not self.flag:
            return
        step, grad_norm, *values = self.first.tolist()
        named = dict(zip(self.names, values, strict=True))
        loss = named.pop("loss")
        shown = [f"loss {loss:.4g}", f"gradient norm {grad_norm:.4g}"]
        shown += [f"{n} {v:.4g}" for n, v in named.items() if not abs(v) <= LARGEST]
        raise Diverged(
            f"diverged at step {step:.0f} ({', '.join(shown)})",
            f"that step and all after it were not taken; {checkpoint}; {self.advice}",
        )


def advice(run: Run) -> str:
    """Return what to try after a divergence, in flags of the run's program."""
    if run.memory("replay_buffer") is not None:
        return "try more --n_steps, a lower --lr, --sigma .1, --warmup_iters 1000 or --sgld_l2 .1"
    if "clip_grad" in run.settings:
        return "try a lower --lr, --warmup_iters 1000 or --clip_grad 5"
    return "try a lower --lr or --warmup_iters 1000"


class Healer:
    """Restart a run that diverges, --max_restarts times.

    Keep two snapshots of the run's state, on its device, 200 steps or more apart. A restart takes
    the older one, since the steps before a divergence are seldom healthy; halves the learning rate,
    for the rest of the run; seeds the random numbers anew; and begins the chains of the replay
    buffer anew that blew up. The older one of a resumed run is at first the checkpoint before the
    last.
    """

    def __init__(self, run: Run) -> None:
        self.snapshots = [snapshot(run)] if run.settings.max_restarts else []
        if self.snapshots and run.earlier is not None:
            self.snapshots.insert(0, run.earlier)
        run.earlier = None

    def keep(self, run: Run) -> None:
        """Take a snapshot, if one is due: only of a state that the guard has let pass, and never
        between the last step of an epoch and its evaluation."""
        if not self.snapshots:
            return
        if run.progress.step - self.snapshots[-1]["progress"]["step"] >= SNAPSHOT_EVERY:
            del self.snapshots[:-1]  # before there is a third
            self.snapshots.append(snapshot(run))

    def heal(self, run: Run, error: Diverged) -> str:
        """Restart the run, and return a line about it. Raises Diverged where no restart is left."""
        restarts, limit = run.progress.restarts, run.settings.max_restarts
        if restarts >= limit:
            given_up = f"given up after {restarts} of --max_restarts {limit}; " if limit else ""
            raise Diverged(error.where, given_up + error.rest) from None
        slower = run.progress.lr_scale * SLOWER
        best = run.progress.best_valid  # its checkpoint stays
        self.snapshots = self.snapshots[:1]
        # An optimiser keeps the tensors that it is given.
        restore(run, copy.deepcopy(self.snapshots[0]))
        run.progress.best_valid = max(best, run.progress.best_valid)
        run.progress.restarts, run.progress.lr_scale = restarts + 1, slower
        key = (run.settings.seed, run.progress.step, restarts + 1)
        own = (distributed.rank(),) if distributed.size() > 1 else ()
        torch.manual_seed(distributed.mixed(*key, *own))
        chains, renewed = run.memory("replay_buffer"), ""
        if chains is not None:
            renewed = f", {sum(distributed.all_of(chains.renew())):,} chains begun anew"
        return (
            f"{error.where}: back to step {run.progress.step:,}, learning rate x {slower:g}, new "
            f"random numbers{renewed}; restart {restarts + 1} of {limit}"
        )


def snapshot(run: Run) -> dict[str, Any]:
    """Return a copy of the run's state on its device, where copies are quick."""
    return copy.deepcopy(checkpoint_state(run))
