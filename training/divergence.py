"""Notice a diverged step on the device, without the host waiting for every step; and recover."""

from __future__ import annotations

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
    """The run has diverged; the message is one line that says where, and what to try.

    `where`: its beginning, which step and by what.
    """

    def __init__(self, where: str, rest: str) -> None:
        super().__init__(f"{where}; {rest}")
        self.where, self.rest = where, rest


class Guard:
    """A flag that is set by the first step of which the loss, or what a term reports (its own loss,
    the energies of data and samples), is beyond 1e8 or not finite, or the gradient not finite.

    It stays set: that step and all later ones are masked (the optimiser takes the flag as its
    `found_inf`, the queue and the replay buffer as `skip`), so the state stays that of the last
    good step until the host looks, at the next report.

    `advice`: what to try, for the message.
    """

    def __init__(self, device: torch.device, advice: str = "try a lower --lr") -> None:
        self.device, self.advice = device, advice
        self.reset()

    def reset(self) -> None:
        self.flag = torch.zeros((), dtype=torch.bool, device=self.device)
        self.names: list[str] = []
        self.first = torch.zeros(0, dtype=torch.float64, device=self.device)  # step, norm, values

    def check(
        self,
        loss: Tensor,
        grad_norm: Tensor,
        step: int,
        metrics: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The flag (), after this step's loss, gradient norm and terms' metrics (scalars)."""
        named = {**(metrics or {}), "loss": loss.detach()}
        values = torch.stack(list(named.values()))
        bad = ~(values.abs() <= LARGEST).all() | ~grad_norm.isfinite()  # nan fails the comparison
        norm = grad_norm.to(values.dtype).reshape(1)
        found = torch.cat([torch.full_like(norm, step), norm, values]).double()
        if self.names != list(named):  # another phase of the training, which a host has looked at
            self.names, self.first = list(named), found
        self.first = torch.where(bad & ~self.flag, found, self.first)
        self.flag = self.flag | bad
        return self.flag

    def raise_if_diverged(self, checkpoint: str) -> None:
        """Reads the flag (a host synchronisation). Raises Diverged."""
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
    """Lets a run that diverges go on, --max_restarts times.

    It keeps two snapshots of the run's state, on its device, 200 steps or more apart. A restart
    takes the older one, since what came before a divergence is seldom healthy; halves the learning
    rate, for the rest of the run; seeds the random numbers anew; and lets the chains of the replay
    buffer that blew up begin anew. Of a resumed run the older one is at first the checkpoint before
    the last.
    """

    def __init__(self, run: Run) -> None:
        self.snapshots = [snapshot(run)] if run.settings.max_restarts else []
        if self.snapshots and run.earlier is not None:
            self.snapshots.insert(0, run.earlier)
        run.earlier = None

    def keep(self, run: Run) -> None:
        """A snapshot, if one is due. Only of a state that the guard has let pass, and never between
        the last step of an epoch and its evaluation."""
        if not self.snapshots:
            return
        if run.progress.step - self.snapshots[-1]["progress"]["step"] >= SNAPSHOT_EVERY:
            del self.snapshots[:-1]  # before there is a third
            self.snapshots.append(snapshot(run))

    def heal(self, run: Run, error: Diverged) -> str:
        """Restart the run; says what was done. Raises Diverged where no restart is left."""
        done, limit = run.progress.restarts, run.settings.max_restarts
        if done >= limit:
            given_up = f"given up after {done} of --max_restarts {limit}; " if limit else ""
            raise Diverged(error.where, given_up + error.rest) from None
        slower = run.progress.lr_scale * SLOWER
        best = run.progress.best_valid  # its checkpoint stays
        self.snapshots = self.snapshots[:1]
        restore(run, cloned(self.snapshots[0]))  # an optimiser keeps the tensors it is given
        run.progress.best_valid = max(best, run.progress.best_valid)
        run.progress.restarts, run.progress.lr_scale = done + 1, slower
        key = (run.settings.seed, run.progress.step, done + 1)
        own = (distributed.rank(),) if distributed.size() > 1 else ()
        torch.manual_seed(distributed.mixed(*key, *own))
        chains, renewed = run.memory("replay_buffer"), ""
        if chains is not None:
            renewed = f", {sum(distributed.all_of(chains.renew())):,} chains begun anew"
        return (
            f"{error.where}: back to step {run.progress.step:,}, learning rate x {slower:g}, new "
            f"random numbers{renewed}; restart {done + 1} of {limit}"
        )


def snapshot(run: Run) -> dict[str, Any]:
    """The run's state, which training does not change; on its device, where copies are quick."""
    return cloned(checkpoint_state(run))


def cloned(value: Any) -> Any:
    """The same with clones of its tensors."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: cloned(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(cloned(inner) for inner in value)
    return value
