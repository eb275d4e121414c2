"""What a person and later programs see of a run while it trains."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from runs import checkpoint
from runs.checkpoint import save_checkpoint
from runs.folder import Records
from runs.screen import make_bar, print_line
from training.state import Run, whole_state


def rewind(bar: tqdm, n: int) -> None:
    """Set the bar back to n: left alone, it would stand still until it is where it was."""
    bar.n = bar.last_print_n = n
    bar.last_print_t = bar._time()
    bar.refresh()


class Output:
    """The screen, the records and the checkpoints of one run folder. Of several processes the first
    one alone has a `book`, and writes and speaks; the others take part where states are gathered.

    `early`: steps after which the bar shows losses before the first report, so that a slow run
    shows soon what it does.
    """

    def __init__(self, folder: Path, book: Records | None, early: Sequence[int] = ()) -> None:
        self.folder, self.book, self.early = folder, book, early
        self.saved_step, self.saved_at = -1, time.monotonic()
        self.reports = 0  # of this process

    def say(self, message: str) -> None:
        """A line for log.txt and for the screen."""
        if self.book is not None:
            self.book.line(message)
            print_line(message, sys.stdout)

    @contextmanager
    def progress_bar(self, run: Run, images: int) -> Iterator[tqdm]:
        """One bar for the whole run, in images: its rate is images/s, its ETA the run's."""
        done = run.progress.step * run.settings.batch_size
        with make_bar(images, initial=done, disable=self.book is None) as bar:
            yield bar

    def show(self, means: dict[str, float], bar: tqdm) -> None:
        """Each term's loss, their sum unless one term is all, and the accuracy where there is one:
        to the bar."""
        terms = {n.removesuffix("/loss"): v for n, v in means.items() if n.endswith("/loss")}
        total = {"loss": means["loss"]} if len(terms) != 1 else {}
        shown = {**terms, **total}
        if "accuracy" in means:
            shown["accuracy"] = means["accuracy"]
        bar.set_postfix({name: f"{value:.3g}" for name, value in shown.items()}, refresh=False)

    def report(self, run: Run, epoch: int, bar: tqdm) -> None:
        """Means since the last report: to the bar, log.txt and TensorBoard."""
        self.reports += 1
        if self.book is None:
            run.window.reset()
            return
        means = run.window.means()
        run.window.reset()
        self.show(means, bar)
        rate = run.optimizer.param_groups[0]["lr"]
        text = " ".join(f"{name} {value:.6g}" for name, value in means.items())
        self.book.line(f"epoch {epoch} step {run.progress.step} lr {rate:.3g} {text}")
        scalars = {f"train/{name}": value for name, value in means.items()}
        self.book.scalars({**scalars, "train/lr": rate}, run.progress.step)

    def row(
        self,
        run: Run,
        epoch: int,
        results: dict[str, dict[str, float]],
        gradients: dict[str, float],
    ) -> None:
        """One row of progress.csv, and a line for people.

        `results`: split -> {accuracy, nll}; {} where nothing was evaluated. What an epoch does
        not have is left empty: the loss of a term that is not yet trained, the accuracy of a
        network that does not classify.
        """
        if self.book is None:
            return
        progress, means = run.progress, run.epoch.means()
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
        extras = {n: v for n, v in means.items() if "/" in n and not n.endswith("/loss")}
        values |= extras  # what terms report besides their loss, such as the energies of SGLD
        values |= gradients
        self.book.row(values)
        shown = [f"{name} {value:.4g}" for name, value in values.items() if value != ""]
        self.say(", ".join(shown))

    def board(
        self, results: dict[str, dict[str, float]], gradients: dict[str, float], step: int
    ) -> None:
        """What a row has besides an epoch's means, to TensorBoard, once the row is in a checkpoint:
        what is repeated after a kill would be there twice."""
        if self.book is None:
            return
        scalars = dict(gradients)
        for name, result in results.items():
            scalars[f"{name}/accuracy"], scalars[f"{name}/nll"] = result["accuracy"], result["nll"]
        self.book.scalars(scalars, step)

    def save(self, run: Run, epoch: int = -1, valid: float | None = None) -> None:
        """The last checkpoint and, where due, the best one and the epoch's own.

        `valid`: the validation accuracy of this state, None where it was not evaluated.
        """
        progress, every = run.progress, run.settings.ckpt_every
        best = valid is not None and valid > progress.best_valid
        if best:
            progress.best_valid = valid  # type: ignore[assignment]
        if self.book is not None:
            progress.log_bytes = self.book.flush()
        state = whole_state(run)
        due = every > 0 and (epoch + 1) % every == 0
        if self.book is not None:
            self.write(state, epoch if epoch >= 0 and due else -1, best)
        self.saved_step, self.saved_at = progress.step, time.monotonic()

    def write(self, state: dict[str, Any], kept_epoch: int, best: bool) -> None:
        """`kept_epoch`: whose own checkpoint is due; -1: none."""
        # The last one last: what it says is done (the best accuracy, this epoch) is on the disk.
        if best:
            save_checkpoint(state, self.folder / checkpoint.BEST)
        if kept_epoch >= 0:
            save_checkpoint(state, self.folder / f"ckpt_{kept_epoch}.pt")
        last, previous = self.folder / checkpoint.LAST, self.folder / checkpoint.PREVIOUS
        # Saved once more at one step, with its evaluation: the previous one is of another step.
        keep = None if state["progress"]["step"] == self.saved_step else previous
        if not (best and checkpoint.save_link(self.folder / checkpoint.BEST, last, keep)):
            save_checkpoint(state, last, keep=keep)

    def save_is_due(self, minutes: float) -> bool:
        """The last save, or the beginning of this process, is so long ago."""
        return time.monotonic() - self.saved_at >= 60 * minutes

    def go_back(self, run: Run, told: str, bar: tqdm) -> None:
        """The run goes on from an earlier step: `told` says why. It is saved, so that the restart
        counts whatever comes."""
        self.say(told)
        # First the checkpoint, and both: one of a later step would miss rows, and this restart.
        self.saved_step = run.progress.step
        self.save(run)
        if self.book is None:
            return
        checkpoint.keep_old(self.folder / checkpoint.LAST, self.folder / checkpoint.PREVIOUS)
        self.book.go_back(run.progress.step)
        rewind(bar, run.progress.step * run.settings.batch_size)

    def last_good(self) -> str:
        last = self.folder / checkpoint.LAST
        return f"the last good checkpoint is {last} (step {self.saved_step})"
