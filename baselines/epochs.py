"""The loop over epochs, and what is written of each, of the programs of this folder."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import data
from evaluation.classification import classification
from losses import Metrics
from training.divergence import Guard
from training.output import Output
from training.schedule import learning_rate
from training.state import Run

EVAL_BATCH = 200  # images; results do not depend on it
ADVICE = "try a lower --lr or --warmup_iters 1000"  # to whoever sees a run diverge


class Objective(nn.Module):
    """What a program minimises. A subclass brings `terms` and `forward`.

    terms: names of the loss's parts: the columns '<term>/loss' of progress.csv.
    """

    terms: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.memories = nn.ModuleDict()  # no queue, no replay buffer: checkpoints look for them

    def classifies(self, epoch: int) -> bool:
        """Whether the class head is trained in this epoch: else its accuracy means nothing."""
        return True

    def forward(
        self, model: Any, images: Tensor, labels: Tensor, epoch: int
    ) -> tuple[Tensor, Metrics]:
        """(loss, metrics) of a batch, model in train mode; nothing here waits for the device.

        metrics: scalars on the device: '<term>/loss' and, where it classifies, 'accuracy'; the
        same names in all steps of an epoch.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Batches:
    """`make(step)` -> images float32 (n, 3, 32, 32) and labels int64 (n,) of a training step."""

    make: Callable[[int], tuple[Tensor, Tensor]]
    steps_per_epoch: int

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        return self.make(step)


def train(
    run: Run, batches: Batches, splits: dict[str, data.Split], out: Output, began: float
) -> str:
    """Train until the schedule, --max_steps or --max_minutes ends; says which of them it was.

    `began`: time.monotonic() when this process began. Raises Diverged.
    """
    s, progress, per_epoch = run.settings, run.progress, batches.steps_per_epoch
    guard = Guard(run.device, ADVICE)
    total = s.n_epochs * per_epoch
    stop = min(total, s.max_steps) if s.max_steps else total
    deadline = began + 60 * s.max_minutes if s.max_minutes else math.inf
    earlier = progress.seconds

    def unwritten() -> bool:
        """An epoch is trained, and what is due at its end is not done."""
        return run.epoch.steps > 0 and progress.step % per_epoch == 0

    if progress.step == 0:
        out.save(run)  # what diverges or dies in its first epoch can be resumed, too
    elif progress.step >= stop and not unwritten():
        return f"nothing to do: {progress.step:,} steps are done; raise --n_epochs or --max_steps"
    with out.progress_bar(run, stop * s.batch_size) as bar:
        while (progress.step < stop and time.monotonic() < deadline) or unwritten():
            epoch = (progress.step - unwritten()) // per_epoch
            if not unwritten():
                train_epoch(run, batches, guard, out, bar, stop, deadline)
            ended = progress.step >= stop or time.monotonic() >= deadline
            whole = progress.step % per_epoch == 0
            progress.seconds = earlier + time.monotonic() - began
            if ended:  # whoever set a limit may have little time left for what follows
                out.save(run)
            results = {}
            due = ended or (whole and (epoch + 1) % s.eval_every == 0)
            if due and run.objective.classifies(epoch):
                bar.set_description(f"epoch {epoch + 1}/{s.n_epochs}, evaluating")
                results = evaluate(run, splits)
            progress.seconds = earlier + time.monotonic() - began
            out.row(run, epoch, results)
            if whole:
                run.epoch.reset()
                progress.train_seconds = 0.0
            out.save(run, epoch if whole else -1, results.get("valid", {}).get("accuracy"))
    if progress.step >= total:
        return f"complete: {s.n_epochs} epochs"
    if progress.step >= stop:
        return f"stopped by --max_steps {s.max_steps}; --resume goes on"
    return f"stopped by --max_minutes {s.max_minutes:g}; --resume goes on"


def train_epoch(
    run: Run, batches: Batches, guard: Guard, out: Output, bar: tqdm, stop: int, deadline: float
) -> None:
    """The rest of the current epoch, or up to step `stop` or the time `deadline`."""
    s, progress = run.settings, run.progress
    epoch = progress.step // batches.steps_per_epoch
    started = time.monotonic()
    bar.set_description(f"epoch {epoch + 1}/{s.n_epochs}")
    run.model.train()
    for step in range(progress.step, min((epoch + 1) * batches.steps_per_epoch, stop)):
        rate = learning_rate(
            s.lr,
            step=step,
            epoch=epoch,
            warmup_iters=s.warmup_iters,
            decay_epochs=s.decay_epochs,
            decay_rate=s.decay_rate,
        )
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        metrics = train_step(run, guard, *batches(step), step=step, epoch=epoch)
        names, values = list(metrics), torch.stack(list(metrics.values()))
        if run.window.names != names:  # another phase of the training has other metrics
            run.window.reset()
        run.window.add(values, names)
        run.epoch.add(values, names)
        progress.step = step + 1
        bar.update(s.batch_size)
        if progress.step % s.print_every == 0:
            guard.raise_if_diverged(out.last_good())
            out.report(run, epoch, bar)
        if time.monotonic() >= deadline:
            break
    guard.raise_if_diverged(out.last_good())  # before anything of this epoch is saved
    progress.train_seconds += time.monotonic() - started


def train_step(
    run: Run, guard: Guard, images: Tensor, labels: Tensor, *, step: int, epoch: int
) -> Metrics:
    """One update; its metrics are scalars on the device. Nothing here waits for the device."""
    loss, metrics = run.objective(run.model, images, labels, epoch)
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    groups = run.optimizer.param_groups
    gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
    grad_norm = torch.nn.utils.get_total_norm(gradients)
    skip = guard.check(loss, grad_norm, step)
    run.optimizer.found_inf = skip.float()  # type: ignore[attr-defined]  # as GradScaler sets it
    run.optimizer.step()
    kept = {name: value.detach() for name, value in metrics.items()}
    return {**kept, "loss": loss.detach(), "grad_norm": grad_norm}


def evaluate(run: Run, splits: dict[str, data.Split]) -> dict[str, dict[str, float]]:
    """Split -> accuracy and nll, with noise --sigma, in eval mode."""
    return {
        name: classification(
            run.model,
            data.evaluation_batches(part, batch_size=EVAL_BATCH, sigma=run.settings.sigma),
        )
        for name, part in splits.items()
    }
