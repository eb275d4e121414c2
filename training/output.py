"""The output of a run while it trains: screen, records and checkpoints."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runs import processes as distributed
from runs.checkpoint import copy_checkpoint, save_checkpoint
from runs.files import keep_old
from runs.folder import BEST, LAST, PREVIOUS, Records
from runs.screen import rewind
from training.state import Run, whole_state

if TYPE_CHECKING:
    from tqdm import tqdm


Results = dict[str, dict[str, float]]  # split -> {accuracy, nll}; {}: nothing was evaluated


class Output:
    """The screen, the records and the checkpoints of one run folder. Of several processes the first
    one writes; the others have NoRecords, and take part where states are gathered.

    early: steps after which the bar shows losses before the first report, so that a slow run shows
        soon what it does.
    """

    bar: tqdm  # of the whole run, in images: its rate is images/s, its ETA the run's

    def __init__(self, run: Run, folder: Path, records: Records) -> None:
        self.run, self.folder, self.records = run, folder, records
        self.saved_step, self.saved_at = -1, time.monotonic()  # or when this process began
        self.reports = 0  # of this process

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

    def board(self, results: Results, gradients: dict[str, float]) -> None:
        """Write what a row has besides an epoch's means to TensorBoard, once the row is in a
        checkpoint: it would be there twice if it was repeated after a kill."""
        scalars = dict(gradients)
        for name, result in results.items():
            scalars[f"{name}/accuracy"], scalars[f"{name}/nll"] = result["accuracy"], result["nll"]
        self.records.scalars(scalars, self.run.progress.step)

    def save(self, epoch: int = -1, valid: float | None = None) -> None:
        """Save the last checkpoint and, where due, the best one and that of the epoch.

        epoch: the one that has just been completed; -1: none.
        valid: the validation accuracy of this state, None where it was not evaluated.
        """
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
                copy_checkpoint(self.folder / BEST, self.folder / LAST, keep=keep)
            else:
                save_checkpoint(state, self.folder / LAST, keep=keep)
        self.saved_step, self.saved_at = progress.step, time.monotonic()

    def go_back(self, message: str) -> None:
        """Go on from an earlier step, for the reason that the message says. Save it, so that the
        restart counts whatever comes."""
        self.records.say(message)
        # First the checkpoint, and both: one of a later step would miss rows, and this restart.
        step = self.saved_step = self.run.progress.step
        self.save()
        if distributed.first():
            keep_old(self.folder / LAST, self.folder / PREVIOUS)
            self.records.go_back(step)
            rewind(self.bar, step * self.run.settings.batch_size)

    def last_good(self) -> str:
        return f"the last good checkpoint is {self.folder / LAST} (step {self.saved_step})"
