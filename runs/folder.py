"""Read and write the files of a run folder: settings, progress.csv, log.txt, TensorBoard events.

Nothing slow is imported at the top.
"""

from __future__ import annotations

import csv
import os
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from runs.cli import Mistake
from runs.files import LEFTOVERS, naming, read_json, read_rows, whole, write_json
from runs.screen import print_line

SETTINGS, PROGRESS, LOG = "variant.json", "progress.csv", "log.txt"
LAST, PREVIOUS, BEST = "last_ckpt.pt", "prev_ckpt.pt", "best_valid_ckpt.pt"
WEIGHTS = "model.safetensors"  # of an exported model
DAMAGED = "damaged_ckpt.pt"  # a last checkpoint that could not be read
TRAINED_ON = "training_images"  # key of variant.json: their number and checksum
ENVIRONMENTS = ("environment", "environments")  # keys of variant.json that are no settings


class RunFolderError(Mistake):
    """The run folder cannot be used; the message is one line naming flag, folder and remedy."""


def holds_run(folder: Path) -> bool:
    """Return whether a folder holds a run. The JEM and HDGE code may save checkpoints alone."""
    names = (SETTINGS, PROGRESS, "params.txt")
    return any((folder / name).exists() for name in names) or any(folder.glob("*.pt"))


def check_free(
    folder: Path,
    *,
    overwrite: bool,
    given: bool = True,
    load_path: str | None = None,
    resumes: bool = True,
) -> None:
    """Raise RunFolderError if the folder holds a run that may not be overwritten, or the file that
    the new run starts from.

    given: whether --overwrite was given. Otherwise --resume auto sets `overwrite` where it finds no
        checkpoint; another process may have saved a checkpoint since.
    resumes: whether the program has --resume.
    """
    new_checkpoint = overwrite and not given and any(folder.glob("*.pt"))
    if (holds_run(folder) and not overwrite) or new_checkpoint:
        raise RunFolderError(
            f"--id: {folder} already holds a run: {'continue it with --resume, ' * resumes}"
            "replace it with --overwrite, or give another --id"
        )
    if load_path is not None and Path(load_path).resolve().parent == folder.resolve():
        raise RunFolderError(
            f"--load_path {load_path} lies in the run folder that --overwrite would empty: "
            "give another --id"
        )


def create_run_folder(folder: Path, *, overwrite: bool) -> None:
    """Make a run folder. With `overwrite` remove an earlier run's files and no other files."""
    if overwrite:
        names = (SETTINGS, PROGRESS, LOG, "curves.png", LAST, PREVIOUS, BEST, DAMAGED)
        patterns = ("ckpt_[0-9]*.pt", "events.out.tfevents.*", "samples/*.png", LEFTOVERS)
        for path in [path for pattern in (*names, *patterns) for path in folder.glob(pattern)]:
            path.unlink()
    (folder / "samples").mkdir(parents=True, exist_ok=True)


def write_settings(folder: Path, settings: dict[str, Any], here: dict[str, Any]) -> None:
    """Write variant.json: one flat entry per setting, the layout that viskit reads. "environment"
    is `here`, that of this process; "environments" lists the different environments in which the
    run was started or resumed, oldest first."""
    earlier: list[dict[str, Any]] = []
    with suppress(RunFolderError):
        earlier = environments(read_variant(folder))
    distinct = earlier + [here] * (here not in earlier)
    write_json(folder / SETTINGS, {**settings, "environment": here, "environments": distinct})


def read_settings(folder: Path) -> dict[str, Any]:
    """Return the settings of variant.json. Raises RunFolderError if it cannot be read."""
    return {n: v for n, v in read_variant(folder).items() if n not in ENVIRONMENTS}


def environments(variant: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the environments in which the run was started or resumed, oldest first. Older versions
    of this program recorded the last environment alone."""
    listed = variant.get("environments")
    entries = listed if isinstance(listed, list) else [variant.get("environment")]
    return [entry for entry in entries if isinstance(entry, dict)]


def read_variant(folder: Path) -> dict[str, Any]:
    """Return the content of variant.json: the settings, and the entries of ENVIRONMENTS. Raises
    RunFolderError."""
    try:
        variant = read_json(folder / SETTINGS)
    except FileNotFoundError:
        raise RunFolderError(
            f"--resume: {folder} holds no run ({SETTINGS} is missing): "
            "give the run's --log_dir and --id, or --resume RUN_FOLDER"
        ) from None
    except (OSError, ValueError) as error:
        raise RunFolderError(f"--resume: {folder / SETTINGS} cannot be read ({error})") from None
    if not isinstance(variant, dict):
        raise RunFolderError(f"--resume: {folder / SETTINGS} holds no settings")
    return variant


def read_progress(folder: Path) -> list[dict[str, str]]:
    """Return the rows of progress.csv, as text; [] where the file is missing."""
    return read_rows(folder / PROGRESS)


def quiet_writers(error: threading.ExceptHookArgs) -> None:
    """Print no traceback for an OSError of TensorBoard's writer thread, as threading.excepthook:
    the next call of the writer raises the same error, which ends the program with one line."""
    thread = type(error.thread).__name__
    if not (isinstance(error.exc_value, OSError) and "AsyncWriter" in thread):
        threading.__excepthook__(error)


class Records:
    """Write log.txt, progress.csv and TensorBoard events. A crash loses no line already written.

    resume_from: (step, bytes of log.txt) when the loaded checkpoint was saved. Records of later
        steps are removed, since the resumed run writes them again.
    """

    def __init__(self, folder: Path, *, resume_from: tuple[int, int] | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow: takes a second to import

        self.folder = folder
        threading.excepthook = quiet_writers
        self.columns: list[str] = []
        self.rows: list[dict[str, Any]] = []
        purge_step = None
        if resume_from is not None:
            step, log_bytes = resume_from
            (folder / "samples").mkdir(exist_ok=True)  # a copy of a run may lack its empty folders
            self._read_rows(step)
            if (folder / LOG).exists() and (folder / LOG).stat().st_size > log_bytes:
                os.truncate(folder / LOG, log_bytes)
            for path in folder.glob(LEFTOVERS):
                path.unlink()
            purge_step = step + 1
        self.log_file = open(folder / LOG, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        self.board = SummaryWriter(str(folder), purge_step=purge_step)

    def say(self, message: str) -> None:
        """Write a line to log.txt and to the screen."""
        self.line(message)
        print_line(message, sys.stdout)

    def line(self, message: str) -> None:
        with naming(self.folder / LOG):
            self.log_file.write(message + "\n")

    def flush(self) -> int:
        """Flush all records to the disk, so that a full disk is noticed now. Return the size of
        log.txt in bytes."""
        with naming(self.folder / LOG):
            self.log_file.flush()
            os.fsync(self.log_file.fileno())
        with naming(self.folder):
            self.board.flush()
        return (self.folder / LOG).stat().st_size

    def row(self, values: dict[str, Any]) -> None:
        """Write one epoch's row of progress.csv.

        A row of the same epoch, which an earlier process had begun, is replaced. A new column,
        where a resumed run logs more than before, is empty in the earlier rows.
        """
        if self.rows and str(self.rows[-1]["epoch"]) == str(values["epoch"]):
            self.rows.pop()
        self.rows.append(values)
        self.columns += [name for name in values if name not in self.columns]
        self._write_rows()

    def scalars(self, values: dict[str, float], step: int) -> None:
        with naming(self.folder):
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def picture(self, name: str, pixels: Any, step: int) -> None:
        """Write an image, uint8 (H, W, 3), for TensorBoard."""
        with naming(self.folder):
            self.board.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        self.log_file.close()
        self.board.close()

    def _read_rows(self, step: int) -> None:
        """Read progress.csv, and drop the rows after this step. Raises RunFolderError for a file
        that another program has damaged."""
        try:
            rows = read_progress(self.folder)
            if any(None in row for row in rows):
                raise ValueError("a row has more fields than the header")
            self.rows = [row for row in rows if int(row["step"]) <= step]
        except (ValueError, TypeError, KeyError, csv.Error) as error:
            raise RunFolderError(
                f"--resume: {self.folder / PROGRESS} cannot be read ({error}): mend it, or move it "
                "away"
            ) from None
        if rows:
            self.columns = list(rows[0])
            self._write_rows()

    def _write_rows(self) -> None:
        with (
            whole(self.folder / PROGRESS) as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)


class NoRecords(Records):
    """Write nothing. Processes other than rank 0 use these records."""

    def __init__(self) -> None:
        pass

    def _nothing(self, *_: Any) -> None:
        pass

    say = line = row = scalars = picture = close = _nothing  # type: ignore[assignment]

    def flush(self) -> int:
        return 0
