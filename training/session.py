"""Run the loop over a run's steps, and all that is due between two steps: screen, records,
checkpoints, evaluation, restarts."""

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
REFERENCE = "pyxce"  # cosines compare a term's gradient with that of this term
EARLY = (1, 5, 25)  # steps after which the bar shows losses before the first report

Results = dict[str, dict[str, float]]  # split -> {accuracy, nll}; {} without an evaluation


class Stopped(Exception):
    """A signal has come: save the run's state and end."""


class Session:
    """Iterate over the numbers of the steps to take, counted from epoch 0 of the schedule:

        with run_in_folder(start, run, splits) as session:
            for step in session:
                session.took(train_step(run, session.guard, batches(step), step))
        return session.code

    Each step must pass its metrics to `guard`. Between two steps come reports, checkpoints,
    evaluation, sample grids and, after a divergence, a restart, until the schedule, --max_steps,
    --max_minutes or a signal ends the run; `ending` is a line about it. After a signal the whole
    state is saved, without a row of progress.csv, so that the resumed run equals an undisturbed
    run. Of several processes the first writes; if any notices a signal or a limit of time, all end.

    splits: evaluated every --eval_every epochs and at the end, if the epoch's metrics have an
        "accuracy".
    plot: draws the sample grids of an epoch, every --plot_every epochs and at the end.

    Raises Diverged while iterating, once --max_restarts are used up.
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
        # Quiet under torchrun: the end of another process may prevent the promised save.
        self.signals = Signals(start.program, quiet=distributed.size() > 1)
        self.guard = Guard(run.device, advice(run))
        self.earlier_seconds = run.progress.seconds  # of the run before it was resumed
        self.deadline = start.began + 60 * s.max_minutes if s.max_minutes else math.inf
        self.total = s.n_epochs * run.steps_per_epoch
        self.stop = min(self.total, run.first_step + s.max_steps) if s.max_steps else self.total
        self.saved_step, self.saved_at = run.progress.step, time.monotonic()
        self.reports = 0  # written by this process
        self.ending, self.code = "", 0

    def __iter__(self) -> Iterator[int]:
        run = self.run
        if run.progress.step == run.first_step:
            self.save()  # so that a run that diverges or dies in its first epoch can be resumed
        elif run.progress.step >= self.stop and not self.row_is_due():
            steps = f"{run.progress.step:,} steps are done"
            self.ending = f"nothing to do: {steps}; raise --n_epochs or --max_steps"
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
                step = f"{run.progress.step:,}"
                self.ending = f"stopped by {self.signals.name} at step {step}; --resume goes on"

    def took(self, metrics: Metrics) -> None:
        """Count a step and add its metrics, scalars on the device. Do not wait for the device."""
        run, names, values = self.run, list(metrics), torch.stack(list(metrics.values()))
        run.window.add(values, names)
        run.epoch.add(values, names)
        run.progress.step += 1
        self.bar.update(run.settings.batch_size)

    def steps_of_epoch(self) -> Iterator[int]:
        """Yield the remaining steps of the epoch, until the time is up or a signal has come. Raises
        Diverged."""
        run, progress = self.run, self.run.progress
        epoch = progress.step // run.steps_per_epoch
        until = min((epoch + 1) * run.steps_per_epoch, self.stop)
        self.bar.set_description(self.epoch_title(epoch))
        started = time.monotonic()
        run.model.train()
        for step in range(progress.step, until):
            rate = learning_rate(run.settings, step - run.first_step, epoch)
            for group in run.optimizer.param_groups:
                group["lr"] = progress.lr_scale * rate
            yield step
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
        """Evaluate, draw samples, write the epoch's row and save. Return whether the time is up.
        Raises Stopped."""
        run, s, progress = self.run, self.run.settings, self.run.progress
        late, save_due, signal = self.agree()
        if signal:
            raise Stopped
        epoch = (progress.step - 1) // run.steps_per_epoch
        complete = progress.step % run.steps_per_epoch == 0
        ended = progress.step >= self.stop or late
        scheduled = complete and (epoch + 1) % s.eval_every == 0
        # Save before the evaluation: after a limit the process may have little time left.
        if ended or save_due:
            self.save()
        results = Results()
        if (ended or scheduled) and "accuracy" in run.epoch.names:
            self.bar.set_description(f"{self.epoch_title(epoch)}, evaluating")
            results = self.evaluate()
            self.bar.set_description(self.epoch_title(epoch), refresh=False)
        if self.plot is not None and distributed.first():
            if ended or (complete and (epoch + 1) % s.plot_every == 0):
                with run.averaged():
                    self.plot(epoch, self)
        gradients = run.gradients.means()
        self.row(epoch, results, gradients)
        if complete:
            run.epoch.reset()
            run.gradients.reset()
            progress.train_seconds = 0.0
        progress.written_step = progress.step
        # Only an evaluation that an undisturbed run has, too, may choose the best checkpoint.
        undisturbed = scheduled or (complete and progress.step >= self.total)
        valid = results.get("valid", {}).get("accuracy") if undisturbed else None
        self.save(epoch if complete else -1, valid)
        # Not before the save: after a kill in between TensorBoard would get these values twice.
        scalars = {f"{split}/{n}": v for split, row in results.items() for n, v in row.items()}
        self.records.scalars(scalars | gradients, progress.step)
        if complete:
            self.healer.keep(run)
        late, _, signal = self.agree()
        if signal and progress.step < self.total:
            raise Stopped
        return late

    def evaluate(self) -> Results:
        """Return accuracy and nll of each split, with noise --sigma, in eval mode. Several
        processes share the batches. Raises Stopped for a signal."""
        run, results = self.run, Results()
        with run.averaged(), torch.compiler.set_stance("force_eager"):  # a smaller last batch
            for name, split in self.splits.items():
                batches = data.evaluation_batches(
                    split, batch_size=EVAL_BATCH, sigma=run.settings.sigma
                )
                polled = takewhile(lambda _: not self.signals.received, batches)
                measured = classification(run.model, polled)
                if self.agree()[2]:
                    raise Stopped
                results[name] = {key: measured[key] for key in ("accuracy", "nll")}
        return results

    def row_is_due(self) -> bool:
        """Return whether the steps of an epoch, or of --max_steps, are done and have no row yet."""
        step = self.run.progress.step
        due = step % self.run.steps_per_epoch == 0 or step >= self.stop
        return due and self.run.epoch.steps > 0 and self.run.progress.written_step != step

    def agree(self) -> tuple[bool, bool, int]:
        """Return whether the time is up, whether a save is due, and the number of a received signal
        (0: no signal). All processes return the same, as soon as any of them notices it."""
        now, minutes = time.monotonic(), self.run.settings.ckpt_minutes
        save_due = now - self.saved_at >= 60 * minutes
        noticed = (now >= self.deadline, save_due, self.signals.received)
        late, save_due, signal = distributed.largest(*noticed)
        self.signals.receive(signal)
        return bool(late), bool(save_due), signal

    def epoch_title(self, epoch: int) -> str:
        return f"epoch {epoch} (last {self.run.settings.n_epochs - 1})"

    def limit(self) -> str:
        """Return a line about the limit that has ended the run."""
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
        values = terms | {name: means[name] for name in names if name in means}
        self.bar.set_postfix({n: f"{v:.3g}" for n, v in values.items()}, refresh=False)

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
        """Write a row of progress.csv, and its values as a line to the screen and log.txt.

        Leave values empty that the epoch does not have: the loss of a term that is not yet trained,
        the accuracy of a network that does not classify.
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
        # Metrics of terms besides their loss, such as the energies of SGLD.
        values |= {n: v for n, v in means.items() if "/" in n and not n.endswith("/loss")}
        values |= gradients
        self.records.row(values)
        texts = [f"{name} {value:.4g}" for name, value in values.items() if value != ""]
        self.records.say(", ".join(texts))

    def save(self, epoch: int = -1, valid: float | None = None) -> None:
        """Save the last checkpoint and, where due, the best checkpoint and that of the epoch.

        epoch: the number of an epoch that this state completes, else -1.
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
            # LAST is saved at the end: its progress counts on the other files being on the disk.
            if best:
                save_checkpoint(state, self.folder / BEST)
            if epoch >= 0 and every > 0 and (epoch + 1) % every == 0:
                save_checkpoint(state, self.folder / f"ckpt_{epoch}.pt")
            # A second save at a step, after its evaluation, keeps PREVIOUS, of an earlier step.
            keep = None if progress.step == self.saved_step else self.folder / PREVIOUS
            if best:
                second_name(self.folder / BEST, self.folder / LAST, keep=keep)
            else:
                save_checkpoint(state, self.folder / LAST, keep=keep)
        self.saved_step, self.saved_at = progress.step, time.monotonic()

    def go_back(self, message: str) -> None:
        """Go on from the earlier step that the healer has restored, for the reason in `message`.
        Save at once, so that the restart counts even if the process is killed."""
        self.guard.reset()
        self.records.say(message)
        # Save both checkpoints first: resuming from a later step would miss rows and this restart.
        step = self.saved_step = self.run.progress.step
        self.save()
        if distributed.first():
            second_name(self.folder / LAST, self.folder / PREVIOUS)
            self.records.close()
            resume_from = (step, self.run.progress.log_bytes)  # this keeps all of log.txt
            self.records = Records(self.folder, resume_from=resume_from)
            rewind(self.bar, step * self.run.settings.batch_size)

    def last_good(self) -> str:
        return f"the last good checkpoint is {self.folder / LAST} (step {self.saved_step})"

    def set_clock(self) -> None:
        self.run.progress.seconds = self.earlier_seconds + time.monotonic() - self.began


def update(
    run: Run, guard: Guard, loss: Tensor, metrics: Metrics, step: int
) -> tuple[Metrics, Tensor]:
    """Take one step down the gradient of `loss`, unless it has diverged. Return the metrics with
    "grad_norm", and the flag (), on the device, that is set where the step was not taken.

    `metrics`: detached scalars, "loss" among them. Of several processes each has a part of the
    batch. The gradients are averaged over processes in the backward pass, the metrics after it; so
    all take the same update, or all skip it. Nothing here waits for the device.
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
    max_norm = getattr(run.settings, "clip_grad", 0)
    if max_norm > 0:
        torch._foreach_mul_(gradients, (max_norm / grad_norm).clamp(max=1))
    run.optimizer.found_inf = skip.float()  # type: ignore[attr-defined]  # as GradScaler sets it
    run.optimizer.step()
    if run.ema is not None:
        run.ema.update(skip)
    return {**metrics, "grad_norm": grad_norm}, skip


def term_gradients(losses: dict[str, Tensor], parameters: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return two scalars of each term's loss L, before its weight: '<term>/gradient', the L2 norm
    of dL/dparameters, and '<term>/cosine' with the gradient of cross-entropy, if that is a term.

    The scalars are on the device. The graph stays, no .grad is touched and no random number is
    drawn, so the training step that follows is the same to the bit. A norm of 0 has the cosine 0.
    """
    flat = {}
    for name, loss in losses.items():
        if loss.requires_grad:
            parts = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
        else:  # the term depends on no parameter
            parts = tuple(torch.zeros_like(p) for p in parameters)
        gradient = torch.cat([part.flatten().float() for part in parts])
        flat[name] = distributed.mean(gradient)  # that of the whole batch
    measured = {f"{name}/gradient": gradient.norm() for name, gradient in flat.items()}
    if REFERENCE in flat:
        for name, gradient in flat.items():
            if name != REFERENCE:
                cosine = torch.cosine_similarity(gradient, flat[REFERENCE], dim=0)
                measured[f"{name}/cosine"] = cosine
    return measured


def learning_rate(s: Namespace, steps_taken: int, epoch: int) -> float:
    """Return lr * min(1, steps_taken / warmup_iters) * decay_rate^(decay epochs passed).

    steps_taken: by the optimiser since the run began, also before it was resumed. It begins at 0
        with --start_epoch, too.
    epoch: of the schedule, counted from 0; decay epoch e is passed from epoch e on.
    """
    warmup = min(1.0, steps_taken / s.warmup_iters) if s.warmup_iters > 0 else 1.0
    return float(s.lr * warmup * s.decay_rate ** sum(epoch >= e for e in s.decay_epochs))
