"""The steps of a run, and everything that is due between two of them."""

from __future__ import annotations

import math
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

import data
from evaluation.classification import classification
from losses import Metrics
from runs import processes as distributed
from runs.endings import Signals, Stopped
from runs.screen import make_bar
from training.divergence import Diverged, Guard, Healer, advice
from training.output import Output, Results
from training.state import Run

EVAL_BATCH = 200  # images; results do not depend on it
REFERENCE = "pyxce"  # the term whose gradient cosines are measured against
EARLY = (1, 5, 25)  # steps after which the bar shows losses before the first report


class Session:
    """Iterate over the numbers of the steps to take, counted from epoch 0 of the schedule:

        session = Session(run, splits, out, signals, began)
        for step in session:
            session.took(train_step(run, session.guard, batches(step), step))
        return session.ending

    A step must show its loss to `guard`. Between two steps come reports, checkpoints, evaluation,
    sample grids and, after a divergence, a restart, until the schedule, --max_steps, --max_minutes
    or a signal ends the run: `ending` says which. A signal leaves all state saved and no row of
    progress.csv, so that the resumed run is as if there had been none. Of several processes, one
    that notices a signal or a limit of time ends the run of all.

    splits: evaluated every --eval_every epochs and at the end.
    began: time.monotonic() when this process began.
    classifies: whether there is a classifier to evaluate in an epoch; None: in all.
    plot: draw the sample grids of an epoch, every --plot_every epochs and at the end.

    Iterating raises Diverged once --max_restarts are used up.
    """

    def __init__(
        self,
        run: Run,
        splits: dict[str, data.Split],
        out: Output,
        signals: Signals,
        began: float,
        *,
        classifies: Callable[[int], bool] | None = None,
        plot: Callable[[int, Output], None] | None = None,
    ) -> None:
        s = run.settings
        self.run, self.splits, self.out, self.signals, self.began = run, splits, out, signals, began
        self.classifies, self.plot = classifies, plot
        self.guard, self.agreement = Guard(run.device, advice(run)), distributed.Agreement()
        self.earlier = run.progress.seconds  # of the processes before this one
        self.deadline = began + 60 * s.max_minutes if s.max_minutes else math.inf
        self.total = s.n_epochs * run.steps_per_epoch
        self.stop = min(self.total, run.first_step + s.max_steps) if s.max_steps else self.total
        self.ending = ""

    def __iter__(self) -> Iterator[int]:
        run, out = self.run, self.out
        if run.progress.step == run.first_step:
            out.save()  # a run that diverges or dies in its first epoch can be resumed, too
        elif run.progress.step >= self.stop and not self.row_is_due():
            done = f"{run.progress.step:,} steps are done"
            self.ending = f"nothing to do: {done}; raise --n_epochs or --max_steps"
            return
        self.healer = Healer(run)
        images, trained = (n * run.settings.batch_size for n in (self.stop, run.progress.step))
        with make_bar(images, initial=trained, disable=not distributed.first()) as out.bar:
            try:
                yield from self.epochs()
                self.ending = self.limit()
            except Stopped:
                self.save()
                self.signals.obeyed = True
                at = f"at step {run.progress.step:,}; --resume goes on"
                self.ending = f"stopped by {self.signals.name} {at}"

    def took(self, metrics: Metrics) -> None:
        """Take in the metrics of a step, scalars on the device. Do not wait for the device."""
        run, names, values = self.run, list(metrics), torch.stack(list(metrics.values()))
        run.window.add(values, names)
        run.epoch.add(values, names)
        run.progress.step += 1
        self.out.bar.update(run.settings.batch_size)

    def epochs(self) -> Iterator[int]:
        """Yield all steps. Raises Stopped for a signal, and Diverged once no restart is left."""
        run, (late, *_) = self.run, self.agree()
        while (run.progress.step < self.stop and not late) or self.row_is_due():
            try:
                if not self.row_is_due():
                    yield from self.steps_of_epoch()
            except Diverged as error:
                message = self.healer.heal(run, error)
                self.set_clock()
                self.guard.reset()
                self.out.go_back(message)
                late, *_ = self.agree()
                if not late or run.epoch.steps == 0:
                    continue
            late = self.end_epoch()

    def steps_of_epoch(self) -> Iterator[int]:
        """Yield the rest of an epoch's steps, until the time is up or a signal has come; of several
        processes, all until the same step, which is one later. Raises Diverged."""
        run, out, progress = self.run, self.out, self.run.progress
        epoch = progress.step // run.steps_per_epoch
        until = min((epoch + 1) * run.steps_per_epoch, self.stop)
        out.bar.set_description(self.titled(epoch))
        started = time.monotonic()
        run.model.train()
        for number in range(progress.step, until):
            rate = learning_rate(run.settings, number - run.first_step, epoch)
            for group in run.optimizer.param_groups:
                group["lr"] = progress.lr_scale * rate
            yield number
            if progress.step % run.settings.print_every == 0:
                self.guard.raise_if_diverged(out.last_good())
                out.report(epoch)
                if progress.step < until:
                    now = time.monotonic()
                    progress.train_seconds += now - started
                    started = now
                    self.healer.keep(run)
            elif out.reports == 0 and run.window.steps in EARLY:
                self.guard.raise_if_diverged(out.last_good())
                out.show(run.window.means())
            late, save_due, signal = self.agreement.soon(*self.noticed())
            if late or signal:
                break
            if save_due:
                progress.train_seconds += time.monotonic() - started
                self.save()
                self.agreement.arrived()  # the others' requests for this save
                started = time.monotonic()
        self.guard.raise_if_diverged(out.last_good())  # before anything of this epoch is saved
        progress.train_seconds += time.monotonic() - started

    def end_epoch(self) -> bool:
        """Evaluate, draw, write the epoch's row and save. Return whether the time is up. Raises
        Stopped."""
        run, s, out, progress = self.run, self.run.settings, self.out, self.run.progress
        late, save_due, signal = self.agree()
        if signal:
            raise Stopped
        epoch = (progress.step - 1) // run.steps_per_epoch
        whole = progress.step % run.steps_per_epoch == 0
        ended = progress.step >= self.stop or bool(late)
        scheduled = whole and (epoch + 1) % s.eval_every == 0
        self.set_clock()
        # Whoever set a limit may have little time left for what follows.
        if ended or save_due:
            out.save()
        results = Results()
        if (ended or scheduled) and (self.classifies is None or self.classifies(epoch)):
            out.bar.set_description(f"{self.titled(epoch)}, evaluating")
            results = self.evaluate()
            out.bar.set_description(self.titled(epoch), refresh=False)
        drawn = self.plot is not None and distributed.first()
        if drawn and (ended or (whole and (epoch + 1) % s.plot_every == 0)):
            with run.averaged():
                self.plot(epoch, out)  # type: ignore[misc]
        self.set_clock()
        gradients = run.gradients.means()
        out.row(epoch, results, gradients)
        if whole:
            run.epoch.reset()
            run.gradients.reset()
            progress.train_seconds = 0.0
        progress.written_step = progress.step
        # A run that nothing has stopped is evaluated at these steps alone.
        counts = scheduled or (whole and progress.step >= self.total)
        valid = results.get("valid", {}).get("accuracy") if counts else None
        out.save(epoch if whole else -1, valid)
        out.board(results, gradients)
        if whole:
            self.healer.keep(run)
        late, _, signal = self.agree()
        if signal and progress.step < self.total:
            raise Stopped
        return bool(late)

    def evaluate(self) -> Results:
        """Return split -> accuracy and nll, with noise --sigma, in eval mode; several processes
        share its batches. Raises Stopped for a signal."""
        run, results = self.run, Results()
        with run.averaged(), torch.compiler.set_stance("force_eager"):  # the last batch is smaller
            for name, split in self.splits.items():
                batches = data.evaluation_batches(
                    split, batch_size=EVAL_BATCH, sigma=run.settings.sigma
                )
                results[name] = classification(run.model, self.signals.polled(batches))
                (signal,) = self.agreement.now(self.signals.received)
                self.signals.receive(signal)
                if signal:
                    raise Stopped
        return results

    def row_is_due(self) -> bool:
        """Return whether an epoch, or all of --max_steps, is trained and has no row yet."""
        step = self.run.progress.step
        due = step % self.run.steps_per_epoch == 0 or step >= self.stop
        return due and self.run.epoch.steps > 0 and self.run.progress.written_step != step

    def save(self) -> None:
        """Save within an epoch. Raises Diverged."""
        self.guard.raise_if_diverged(self.out.last_good())
        self.set_clock()
        self.out.save()

    def set_clock(self) -> None:
        self.run.progress.seconds = self.earlier + time.monotonic() - self.began

    def noticed(self) -> tuple[int, int, int]:
        """Return whether the time is up, whether a save is due, and which signal has come, as this
        process sees it."""
        now, minutes = time.monotonic(), self.run.settings.ckpt_minutes
        save_due = now - self.out.saved_at >= 60 * minutes
        return now >= self.deadline, save_due, self.signals.received

    def agree(self) -> tuple[int, int, int]:
        """Return what any process has noticed, the same in all of them."""
        late, save_due, signal = self.agreement.now(*self.noticed())
        self.signals.receive(signal)
        return late, save_due, signal

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
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        own = torch.cat(
            [
                (torch.zeros_like(p) if g is None else g).flatten().float()
                for p, g in zip(parameters, found, strict=True)
            ]
        )
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
