"""The steps of a run, and everything that is due between two of them: screen, records, checkpoints,
evaluation, restarts."""

from __future__ import annotations

import math
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import data
from evaluation.classification import classification
from losses import Metrics
from runs import processes as distributed
from runs.checkpoint import save_checkpoint
from runs.endings import Signals
from runs.files import second_name
from runs.folder import BEST, LAST, PREVIOUS, Records
from runs.screen import make_bar, rewind
from training.divergence import Diverged, Guard, Healer, advice
from training.state import Run, Start, whole_state

if TYPE_CHECKING:
    from tqdm import tqdm

EVAL_BATCH = 200  # images; results do not depend on it
REFERENCE = "pyxce"  # the term whose gradient cosines are measured against
EARLY = (1, 5, 25)  # steps after which the bar shows losses before the first report

Results = dict[str, dict[str, float]]  # split -> {accuracy, nll}; {}: nothing was evaluated


class Stopped(Exception):
    """A signal came in the middle of what leaves nothing behind, such as an evaluation."""


class Session:
    """Iterate over the numbers of the steps to take, counted from epoch 0 of the schedule:

        with run_in_folder(start, run, splits) as session:
            for step in session:
                session.took(train_step(run, session.guard, batches(step), step))
        return session.code

    A step must show its loss to `guard`. Between two steps come reports, checkpoints, evaluation,
    sample grids and, after a divergence, a restart, until the schedule, --max_steps, --max_minutes
    or a signal ends the run: `ending` says which. A signal leaves all state saved and no row of
    progress.csv, so that the resumed run is as if there had been none. Of several processes the
    first one writes; one that notices a signal or a limit of time ends the run of all.

    splits: evaluated every --eval_every epochs and at the end, where the epoch's metrics have an
        accuracy.
    plot: draw the sample grids of an epoch, every --plot_every epochs and at the end.

    Iterating raises Diverged once --max_restarts are used up.
    """

    bar: tqdm  # of the whole run, in images: its rate is images/s, its ETA the run's

    def __init__(
        self,
        start: Start,
        run: Run,
        splits: dict[str, data.Split],
        records: Records,
        plot: Callable[[int, Session], None] | None = None,
    ) -> None:
        s = run.settings
        self.run, self.splits, self.records, self.plot = run, splits, records, plot
        self.folder, self.began = start.folder, start.began
        # One of several processes promises nothing that the end of another may prevent.
        self.signals = Signals(start.program, quiet=distributed.size() > 1)
        self.guard = Guard(run.device, advice(run))
        self.earlier = run.progress.seconds  # of the processes before this one
        self.deadline = start.began + 60 * s.max_minutes if s.max_minutes else math.inf
        self.total = s.n_epochs * run.steps_per_epoch
        self.stop = min(self.total, run.first_step + s.max_steps) if s.max_steps else self.total
        self.saved_step, self.saved_at = run.progress.step, time.monotonic()
        self.reports = 0  # of this process
        self.ending, self.code = "", 0

    def __iter__(self) -> Iterator[int]:
        run = self.run
        if run.progress.step == run.first_step:
            self.save()  # a run that diverges or dies in its first epoch can be resumed, too
        elif run.progress.step >= self.stop and not self.row_is_due():
            done = f"{run.progress.step:,} steps are done"
            self.ending = f"nothing to do: {done}; raise --n_epochs or --max_steps"
            return
        self.healer = Healer(run)
        images, trained = (n * run.settings.batch_size for n in (self.stop, run.progress.step))
        late = False
        with make_bar(images, initial=trained, disable=not distributed.first()) as self.bar:
            try:
                while (run.progress.step < self.stop and not late) or self.row_is_due():
                    try:
                        if not self.row_is_due():
                            yield from self.steps_of_epoch()
                        late = self.end_epoch()
                    except Diverged as error:
                        self.go_back(self.healer.heal(run, error))
                self.ending = self.limit()
            except Stopped:
                self.save()
                self.code = 128 + self.signals.received
                at = f"at step {run.progress.step:,}; --resume goes on"
                self.ending = f"stopped by {self.signals.name} {at}"

    def took(self, metrics: Metrics) -> None:
        """Take in the metrics of a step, scalars on the device. Do not wait for the device."""
        run, names, values = self.run, list(metrics), torch.stack(list(metrics.values()))
        run.window.add(values, names)
        run.epoch.add(values, names)
        run.progress.step += 1
        self.bar.update(run.settings.batch_size)

    def steps_of_epoch(self) -> Iterator[int]:
        """Yield the rest of an epoch's steps, until the time is up or a signal has come. Raises
        Diverged."""
        run, progress = self.run, self.run.progress
        epoch = progress.step // run.steps_per_epoch
        until = min((epoch + 1) * run.steps_per_epoch, self.stop)
        self.bar.set_description(self.titled(epoch))
        started = time.monotonic()
        run.model.train()
        for number in range(progress.step, until):
            rate = learning_rate(run.settings, number - run.first_step, epoch)
            for group in run.optimizer.param_groups:
                group["lr"] = progress.lr_scale * rate
            yield number
            if progress.step % run.settings.print_every == 0:
                self.guard.raise_if_diverged(self.last_good())
                self.report(epoch)
                if progress.step < until:
                    now = time.monotonic()
                    progress.train_seconds += now - started
                    started = now
                    self.healer.keep(run)
            elif self.reports == 0 and run.window.steps in EARLY:
                self.guard.raise_if_diverged(self.last_good())
                self.show(run.window.means())
            late, save_due, signal = self.agree()
            if late or signal:
                break
            if save_due:
                progress.train_seconds += time.monotonic() - started
                self.save()
                started = time.monotonic()
        self.guard.raise_if_diverged(self.last_good())  # before anything of this epoch is saved
        progress.train_seconds += time.monotonic() - started

    def end_epoch(self) -> bool:
        """Evaluate, draw, write the epoch's row and save. Return whether the time is up. Raises
        Stopped."""
        run, s, progress = self.run, self.run.settings, self.run.progress
        late, save_due, signal = self.agree()
        if signal:
            raise Stopped
        epoch = (progress.step - 1) // run.steps_per_epoch
        whole = progress.step % run.steps_per_epoch == 0
        ended = progress.step >= self.stop or late
        scheduled = whole and (epoch + 1) % s.eval_every == 0
        # Whoever set a limit may have little time left for what follows.
        if ended or save_due:
            self.save()
        results = Results()
        if (ended or scheduled) and "accuracy" in run.epoch.names:
            self.bar.set_description(f"{self.titled(epoch)}, evaluating")
            results = self.evaluate()
            self.bar.set_description(self.titled(epoch), refresh=False)
        if self.plot is not None and distributed.first():
            if ended or (whole and (epoch + 1) % s.plot_every == 0):
                with run.averaged():
                    self.plot(epoch, self)
        gradients = run.gradients.means()
        self.row(epoch, results, gradients)
        if whole:
            run.epoch.reset()
            run.gradients.reset()
            progress.train_seconds = 0.0
        progress.written_step = progress.step
        # A run that nothing has stopped is evaluated at these steps alone.
        counts = scheduled or (whole and progress.step >= self.total)
        valid = results.get("valid", {}).get("accuracy") if counts else None
        self.save(epoch if whole else -1, valid)
        # Once the row is in a checkpoint: it would be there twice if it was repeated after a kill.
        scalars = {f"{split}/{n}": v for split, found in results.items() for n, v in found.items()}
        self.records.scalars(scalars | gradients, progress.step)
        if whole:
            self.healer.keep(run)
        late, _, signal = self.agree()
        if signal and progress.step < self.total:
            raise Stopped
        return late

    def evaluate(self) -> Results:
        """Return split -> accuracy and nll, with noise --sigma, in eval mode; several processes
        share its batches. Raises Stopped for a signal."""
        run, results = self.run, Results()
        with run.averaged(), torch.compiler.set_stance("force_eager"):  # the last batch is smaller
            for name, split in self.splits.items():
                batches = data.evaluation_batches(
                    split, batch_size=EVAL_BATCH, sigma=run.settings.sigma
                )
                polled = takewhile(lambda _: not self.signals.received, batches)
                found = classification(run.model, polled)
                if self.agree()[2]:
                    raise Stopped
                results[name] = {"accuracy": found["accuracy"], "nll": found["nll"]}
        return results

    def row_is_due(self) -> bool:
        """Return whether an epoch, or all of --max_steps, is trained and has no row yet."""
        step = self.run.progress.step
        due = step % self.run.steps_per_epoch == 0 or step >= self.stop
        return due and self.run.epoch.steps > 0 and self.run.progress.written_step != step

    def agree(self) -> tuple[bool, bool, int]:
        """Return whether the time is up, whether a save is due, and the number of the signal that
        has come (0: none), as soon as one of the processes notices it."""
        now, minutes = time.monotonic(), self.run.settings.ckpt_minutes
        save_due = now - self.saved_at >= 60 * minutes
        noticed = (now >= self.deadline, save_due, self.signals.received)
        late, save_due, signal = distributed.largest(*noticed)
        self.signals.receive(signal)
        return bool(late), bool(save_due), signal

    def titled(self, epoch: int) -> str:
        return f"epoch {epoch} (last {self.run.settings.n_epochs - 1})"

    def limit(self) -> str:
        """Return which limit has ended the run."""
        s = self.run.settings
        if self.run.progress.step >= self.total:
            return f"complete: {s.n_epochs} epochs"
        if self.run.progress.step >= self.stop:
            return f"stopped by --max_steps {s.max_steps}; --resume goes on"
        return f"stopped by --max_minutes {s.max_minutes:g}; --resume goes on"

    def show(self, means: dict[str, float]) -> None:
        """Show each term's loss, their sum unless there is one term, and the accuracy, in the
        bar."""
        terms = {n.removesuffix("/loss"): v for n, v in means.items() if n.endswith("/loss")}
        names = [*(["loss"] if len(terms) != 1 else []), "accuracy"]
        shown = terms | {name: means[name] for name in names if name in means}
        self.bar.set_postfix({name: f"{value:.3g}" for name, value in shown.items()}, refresh=False)

    def report(self, epoch: int) -> None:
        """Write the means since the last report to the bar, log.txt and TensorBoard."""
        run, means = self.run, self.run.window.means()
        self.reports += 1
        run.window.reset()
        self.show(means)
        rate = run.optimizer.param_groups[0]["lr"]
        text = " ".join(f"{name} {value:.6g}" for name, value in means.items())
        self.records.line(f"epoch {epoch} step {run.progress.step} lr {rate:.3g} {text}")
        scalars = {f"train/{name}": value for name, value in means.items()}
        self.records.scalars({**scalars, "train/lr": rate}, run.progress.step)

    def row(self, epoch: int, results: Results, gradients: dict[str, float]) -> None:
        """Write one row of progress.csv, and a line for people.

        Values that an epoch does not have are left empty: the loss of a term that is not yet
        trained, the accuracy of a network that does not classify.
        """
        run, progress, means = self.run, self.run.progress, self.run.epoch.means()
        self.set_clock()
        images = run.epoch.steps * run.settings.batch_size
        values: dict[str, Any] = {
            "epoch": epoch,
            "step": progress.step,
            "seconds": round(progress.seconds, 3),
            "images_per_s": round(images / max(progress.train_seconds, 1e-9), 2),
            "lr": run.optimizer.param_groups[0]["lr"],
            "loss": means["loss"],
            **{f"{term}/loss": "" for term in run.objective.terms},
            **{name: value for name, value in means.items() if name.endswith("/loss")},
            "train_acc": means.get("accuracy", ""),
        }
        for name in ("valid", "test"):
            result = results.get(name, {})
            values[f"{name}_acc"] = result.get("accuracy", "")
            values[f"{name}_loss"] = result.get("nll", "")
        # What terms report besides their loss, such as the energies of SGLD.
        values |= {n: v for n, v in means.items() if "/" in n and not n.endswith("/loss")}
        values |= gradients
        self.records.row(values)
        shown = [f"{name} {value:.4g}" for name, value in values.items() if value != ""]
        self.records.say(", ".join(shown))

    def save(self, epoch: int = -1, valid: float | None = None) -> None:
        """Save the last checkpoint and, where due, the best one and that of the epoch.

        epoch: the one that has just been completed; -1: none.
        valid: the validation accuracy of this state, None where it was not evaluated.

        Raises Diverged.
        """
        self.guard.raise_if_diverged(self.last_good())
        self.set_clock()
        progress, every = self.run.progress, self.run.settings.ckpt_every
        best = valid is not None and valid > progress.best_valid
        if best:
            progress.best_valid = valid  # type: ignore[assignment]
        progress.log_bytes = self.records.flush()
        state = whole_state(self.run)
        if distributed.first():
            # The last one last: all that its progress tells of is on the disk by then.
            if best:
                save_checkpoint(state, self.folder / BEST)
            if epoch >= 0 and every > 0 and (epoch + 1) % every == 0:
                save_checkpoint(state, self.folder / f"ckpt_{epoch}.pt")
            # Saved again at the same step, with its evaluation: the previous one is of another.
            keep = None if progress.step == self.saved_step else self.folder / PREVIOUS
            if best:
                second_name(self.folder / BEST, self.folder / LAST, keep=keep)
            else:
                save_checkpoint(state, self.folder / LAST, keep=keep)
        self.saved_step, self.saved_at = progress.step, time.monotonic()

    def go_back(self, message: str) -> None:
        """Go on from an earlier step, for the reason that the message says. Save it, so that the
        restart counts whatever comes."""
        self.guard.reset()
        self.records.say(message)
        # First the checkpoint, and both: one of a later step would miss rows, and this restart.
        step = self.saved_step = self.run.progress.step
        self.save()
        if distributed.first():
            second_name(self.folder / LAST, self.folder / PREVIOUS)
            self.records.close()
            since = (step, self.run.progress.log_bytes)  # all of log.txt: it keeps what happened
            self.records = Records(self.folder, resume_from=since)
            rewind(self.bar, step * self.run.settings.batch_size)

    def last_good(self) -> str:
        return f"the last good checkpoint is {self.folder / LAST} (step {self.saved_step})"

    def set_clock(self) -> None:
        self.run.progress.seconds = self.earlier + time.monotonic() - self.began


def update(
    run: Run, guard: Guard, loss: Tensor, metrics: Metrics, step: int
) -> tuple[Metrics, Tensor]:
    """Take one step down the gradient of `loss`, unless it has diverged. Return the metrics with
    the gradient's norm, and the flag (), on the device, that is set where the step was not taken.

    `metrics`: detached scalars, "loss" among them. Several processes have a part of the batch each:
    averaged over them are the gradients, while the backward pass goes on, and the metrics; so all
    take the same update, or all skip it. Nothing here waits for the device.
    """
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in parameters if p.grad is not None]
    grad_norm = torch.nn.utils.get_total_norm(gradients)
    if run.replicas is not None:
        means = distributed.mean(torch.stack(list(metrics.values())))
        metrics = dict(zip(metrics, means, strict=True))
        distributed.average_statistics(run.model)
    skip = guard.check(metrics, grad_norm, step)
    largest = getattr(run.settings, "clip_grad", 0)
    if largest > 0:
        torch._foreach_mul_(gradients, (largest / grad_norm).clamp(max=1))
    run.optimizer.found_inf = skip.float()  # type: ignore[attr-defined]  # as GradScaler sets it
    run.optimizer.step()
    if run.ema is not None:
        run.ema.update(skip)
    return {**metrics, "grad_norm": grad_norm}, skip


def term_gradients(losses: dict[str, Tensor], parameters: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return of each term's loss L, before its weight, '<term>/gradient', the L2 norm of
    dL/dparameters, and '<term>/cosine' with the gradient of cross-entropy, if that is a term.

    Scalars on the device. The graph stays, no .grad is touched and no random number is drawn, so
    the training step that follows is the same to the bit. A norm of 0 has the cosine 0.
    """
    flat = {}
    for name, loss in losses.items():
        found: Sequence[Tensor] = [torch.zeros_like(p) for p in parameters]
        if loss.requires_grad:  # else none of the parameters moves the term
            found = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
        own = torch.cat([gradient.flatten().float() for gradient in found])
        flat[name] = distributed.mean(own)  # of the whole batch
    measured = {f"{name}/gradient": gradient.norm() for name, gradient in flat.items()}
    if REFERENCE in flat:
        for name, gradient in flat.items():
            if name != REFERENCE:
                cosine = torch.cosine_similarity(gradient, flat[REFERENCE], dim=0)
                measured[f"{name}/cosine"] = cosine
    return measured


def learning_rate(s: Namespace, steps_taken: int, epoch: int) -> float:
    """Return lr * min(1, steps_taken / warmup_iters) * decay_rate^(decay epochs passed).

    steps_taken: by this optimiser, over all processes of the run: with --start_epoch it begins at
        0, too.
    epoch: of the schedule, counted from 0; decay epoch e is passed from epoch e on.
    """
    warmup = min(1.0, steps_taken / s.warmup_iters) if s.warmup_iters > 0 else 1.0
    return float(s.lr * warmup * s.decay_rate ** sum(epoch >= e for e in s.decay_epochs))
