"""The loop over epochs: steps, reports, evaluation, checkpoints, until a limit is reached."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from tqdm import tqdm

import data
from evaluation.classification import classification
from losses import Metrics
from runs import processes as distributed
from runs.signals import Signals, Stopped
from training.divergence import Diverged, Guard, Healer
from training.output import Output
from training.schedule import learning_rate
from training.state import Run

EVAL_BATCH = 200  # images; results do not depend on it


def train(
    run: Run,
    step: Callable[[int], Metrics],
    guard: Guard,
    splits: dict[str, data.Split],
    out: Output,
    began: float,
    signals: Signals,
    *,
    steps_per_epoch: int,
    first: int = 0,
    classifies: Callable[[int], bool] | None = None,
    plot: Callable[[int], None] | None = None,
) -> str:
    """Train until the schedule, --max_steps, --max_minutes or a signal ends; says which it was.

    A signal ends it after the step, with all state saved and no row of progress.csv: resumed, the
    run is as if there had been none.

    step: takes the step of this number, counted from epoch 0 of the schedule, and shows its loss
        to `guard`; its metrics are scalars on the device, and it does not wait for the device.
    splits: what to evaluate on, every --eval_every epochs and at the end.
    began: time.monotonic() when this process began.
    signals: looked at between steps, and between batches of an evaluation. A signal or a limit of
        time that one of several processes notices ends the run of all of them.
    first: the number of the run's first step.
    classifies: whether there is a classifier to evaluate in this epoch; None: in all.
    plot: draws the sample grids of this epoch, every --plot_every epochs and at the end; None:
        there are none.

    Raises Diverged, once --max_restarts are used up.
    """
    s, progress = run.settings, run.progress
    total = s.n_epochs * steps_per_epoch
    stop = min(total, first + s.max_steps) if s.max_steps else total
    deadline = began + 60 * s.max_minutes if s.max_minutes else math.inf
    earlier = progress.seconds

    def unwritten() -> bool:
        """An epoch, or all of --max_steps, is trained, and what is due then is not done."""
        due = progress.step % steps_per_epoch == 0 or progress.step >= stop
        return due and run.epoch.steps > 0 and progress.written_step != progress.step

    if progress.step == first:
        out.save(run)  # what diverges or dies in its first epoch can be resumed, too
    elif progress.step >= stop and not unwritten():
        return f"nothing to do: {progress.step:,} steps are done; raise --n_epochs or --max_steps"

    def save() -> None:
        """In the middle of an epoch. Raises Diverged."""
        guard.raise_if_diverged(out.last_good())
        progress.seconds = earlier + time.monotonic() - began
        out.save(run)

    def stopped() -> str:
        save()
        signals.obeyed = True
        return f"stopped by {signals.name} at step {progress.step:,}; --resume goes on"

    def noticed() -> tuple[int, int, int]:
        """Whether the time is up, and a save due, and which signal has come, to this process."""
        late = time.monotonic() >= deadline
        return late, out.save_is_due(s.ckpt_minutes), signals.received

    def agree() -> tuple[int, int, int]:
        """The same for all processes: where one has noticed it, all have. What is decided then must
        not be decided by what has come to this one in the meantime."""
        late, save_due, signal = agreement.now(*noticed())
        signals.hear(signal)
        return late, save_due, signal

    healer, agreement = Healer(run), distributed.Agreement()
    with out.progress_bar(run, stop * s.batch_size) as bar:
        late, *_ = agree()
        while (progress.step < stop and not late) or unwritten():
            epoch = (progress.step - unwritten()) // steps_per_epoch
            if not unwritten():
                bar.set_description(f"epoch {epoch} (last {s.n_epochs - 1})")
                until = min((epoch + 1) * steps_per_epoch, stop)
                try:
                    train_epoch(
                        run,
                        step,
                        guard,
                        healer,
                        out,
                        bar,
                        epoch,
                        first,
                        until,
                        noticed,
                        save,
                        agreement,
                    )
                except Diverged as error:
                    told = healer.heal(run, error)
                    progress = run.progress
                    progress.seconds = earlier + time.monotonic() - began
                    guard.reset()
                    out.go_back(run, told, bar)
                    late, *_ = agree()
                    if not late or run.epoch.steps == 0:
                        continue
                    epoch = (progress.step - 1) // steps_per_epoch
            late, save_due, signal = agree()
            if signal:
                return stopped()
            ended = progress.step >= stop or bool(late)
            whole = progress.step % steps_per_epoch == 0
            progress.seconds = earlier + time.monotonic() - began
            # Whoever set a limit may have little time left for what follows.
            if ended or save_due:
                out.save(run)
            results = {}
            due = ended or (whole and (epoch + 1) % s.eval_every == 0)
            if due and (classifies is None or classifies(epoch)):
                bar.set_description(f"epoch {epoch} (last {s.n_epochs - 1}), evaluating")
                try:
                    with run.averaged():
                        results = evaluate(run, splits, signals, agreement)
                except Stopped:
                    return stopped()
                bar.set_description(f"epoch {epoch} (last {s.n_epochs - 1})", refresh=False)
            draws = plot is not None and (ended or (whole and (epoch + 1) % s.plot_every == 0))
            if draws and distributed.first():
                with run.averaged():
                    plot(epoch)  # type: ignore[misc]
            progress.seconds = earlier + time.monotonic() - began
            gradients = run.gradients.means()
            out.row(run, epoch, results, gradients)
            if whole:
                run.epoch.reset()
                run.gradients.reset()
                progress.train_seconds = 0.0
            progress.written_step = progress.step
            # A run that nothing has stopped is evaluated at these steps alone.
            counts = whole and ((epoch + 1) % s.eval_every == 0 or progress.step >= total)
            valid = results.get("valid", {}).get("accuracy") if counts else None
            out.save(run, epoch if whole else -1, valid)
            out.board(results, gradients, progress.step)
            if whole:
                healer.keep(run)
            late, _, signal = agree()
            if signal and progress.step < total:
                return stopped()
    if progress.step >= total:
        return f"complete: {s.n_epochs} epochs"
    if progress.step >= stop:
        return f"stopped by --max_steps {s.max_steps}; --resume goes on"
    return f"stopped by --max_minutes {s.max_minutes:g}; --resume goes on"


def train_epoch(
    run: Run,
    step: Callable[[int], Metrics],
    guard: Guard,
    healer: Healer,
    out: Output,
    bar: tqdm,
    epoch: int,
    first: int,
    until: int,
    noticed: Callable[[], tuple[int, int, int]],
    save: Callable[[], None],
    agreement: distributed.Agreement,
) -> None:
    """The rest of the epoch: up to step `until`, which is not taken, or until `noticed` tells that
    the time is up or of a signal; where it tells that a save is due, `save` is called. Several
    processes act on these one step later, all at the same."""
    s, progress = run.settings, run.progress
    started = time.monotonic()
    run.model.train()
    for number in range(progress.step, until):
        set_learning_rate(run, number - first, epoch)
        metrics = step(number)
        names, values = list(metrics), torch.stack(list(metrics.values()))
        if run.window.names != names:  # another phase of the training has other metrics
            run.window.reset()
        run.window.add(values, names)
        run.epoch.add(values, names)
        progress.step = number + 1
        bar.update(s.batch_size)
        if progress.step % s.print_every == 0:
            guard.raise_if_diverged(out.last_good())
            out.report(run, epoch, bar)
            if progress.step < until:
                now = time.monotonic()
                progress.train_seconds += now - started
                started = now
                healer.keep(run)
        elif out.reports == 0 and run.window.steps in out.early:
            guard.raise_if_diverged(out.last_good())
            out.show(run.window.means(), bar)
        late, save_due, signal = agreement.soon(*noticed())
        if late or signal:
            break
        if save_due:
            progress.train_seconds += time.monotonic() - started
            save()
            agreement.forget()  # that it was due
            started = time.monotonic()
    guard.raise_if_diverged(out.last_good())  # before anything of this epoch is saved
    progress.train_seconds += time.monotonic() - started


def set_learning_rate(run: Run, steps_taken: int, epoch: int) -> None:
    s = run.settings
    for group in run.optimizer.param_groups:
        group["lr"] = run.progress.lr_scale * learning_rate(
            s.lr,
            steps_taken=steps_taken,
            epoch=epoch,
            warmup_iters=s.warmup_iters,
            decay_epochs=s.decay_epochs,
            decay_rate=s.decay_rate,
        )


def evaluate(
    run: Run,
    splits: dict[str, data.Split],
    signals: Signals,
    agreement: distributed.Agreement,
) -> dict[str, dict[str, float]]:
    """Split -> accuracy and nll, with noise --sigma, in eval mode; several processes share its
    batches. Raises Stopped for a signal."""
    results = {}
    with torch.compiler.set_stance("force_eager"):  # the last batch has another shape
        for name, split in splits.items():
            batches = data.evaluation_batches(
                split,
                batch_size=EVAL_BATCH,
                sigma=run.settings.sigma,
                part=distributed.share(data.number_of_batches(split, EVAL_BATCH)),
            )
            results[name] = classification(run.model, signals.polled(batches))
            (signal,) = agreement.now(signals.received)
            signals.hear(signal)
            if signal:
                raise Stopped
    return results
