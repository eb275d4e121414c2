"""The run folder: settings, progress.csv, log.txt and TensorBoard events."""

from __future__ import annotations

import csv
import json
import os
import platform
import subprocess
import threading
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from runs import processes as distributed
from runs.checkpoint import BEST, DAMAGED, LAST, PREVIOUS
from runs.files import naming

SETTINGS, PROGRESS, LOG = "variant.json", "progress.csv", "log.txt"
ENVIRONMENTS = ("environment", "environments")  # of variant.json, and no settings
LEFTOVERS = ".*.tmp"  # of a process that was killed while it wrote


class RunFolderError(ValueError):
    """The run folder cannot be used; the message is one line naming flag, folder and remedy."""


def environment(device: torch.device) -> dict[str, Any]:
    """Return what a number depends on besides the settings: versions, commit, device. Programs ask
    before they work: hours later the checkout may be another commit than the one that runs."""
    packages = ("torch", "torchvision", "numpy", "scipy", "scikit-learn")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    count = distributed.size()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in packages},
        "torch_build": torch.__version__,
        "git_commit": git_commit(),
        "device": f"{name}, {count} processes" if count > 1 else name,
        "threads": torch.get_num_threads(),
        "processes": count,
    }


def cpu_name() -> str:
    """The processor's model; where the system does not tell, its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def git_commit() -> str | None:
    """The commit of this code, with '+' where files differ from it; None outside a git checkout."""
    here = Path(__file__).resolve().parent.parent
    ask = ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--dirty=+"]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def holds_run(folder: Path) -> bool:
    """Also the ancestors' runs, of which only the checkpoints may have names that we know."""
    marks = (SETTINGS, PROGRESS, "params.txt")
    return any((folder / name).exists() for name in marks) or any(folder.glob("*.pt"))


def check_free(
    folder: Path, *, overwrite: bool, given: bool = True, load_path: str | None = None
) -> None:
    """Raises RunFolderError if the folder holds a run that may not be overwritten, or the file
    that the new run is to start from. `given`: --overwrite was, else --resume auto found nothing
    to lose, which another process may have changed."""
    lost = overwrite and not given and any(folder.glob("*.pt"))
    if (holds_run(folder) and not overwrite) or lost:
        raise RunFolderError(
            f"--id: {folder} already holds a run: continue it with --resume, "
            "replace it with --overwrite, or give another --id"
        )
    if load_path is not None and Path(load_path).resolve().parent == folder.resolve():
        raise RunFolderError(
            f"--load_path {load_path} lies in the run folder that --overwrite would empty: "
            "give another --id"
        )


def create_run_folder(folder: Path, *, overwrite: bool) -> None:
    """Make a run folder; with `overwrite` the files of an earlier run go, and only those.

    Raises RunFolderError if it cannot be made.
    """
    if overwrite:
        remove_run(folder)
    try:
        (folder / "samples").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(
            f"--log_dir: cannot make {folder} ({error.strerror}): give a folder that is writable"
        ) from None


def remove_run(folder: Path) -> None:
    names = (SETTINGS, PROGRESS, LOG, "curves.png", LAST, PREVIOUS, BEST, DAMAGED)
    patterns = ("ckpt_[0-9]*.pt", "events.out.tfevents.*", "samples/*.png", LEFTOVERS)
    for pattern in (*names, *patterns):
        for path in folder.glob(pattern):
            path.unlink()


def write_settings(folder: Path, settings: dict[str, Any], here: dict[str, Any]) -> None:
    """variant.json: one flat entry a setting (the layout that viskit reads), and where it ran:
    "environment" is `here`, this process's, "environments" has those of all processes of the run
    that differ, the oldest first."""
    before: list[dict[str, Any]] = []
    with suppress(RunFolderError):
        before = environments(read_variant(folder))
    ran = {"environment": here, "environments": before + [here] * (here not in before)}
    text = json.dumps({**settings, **ran}, indent=2)
    temporary = folder / f".{SETTINGS}.tmp"
    with naming(folder / SETTINGS):
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, folder / SETTINGS)


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings alone. Raises RunFolderError if the folder holds no readable variant.json."""
    settings = read_variant(folder)
    for name in ENVIRONMENTS:
        settings.pop(name, None)
    return settings


def environments(variant: dict[str, Any]) -> list[dict[str, Any]]:
    """Where the run's processes ran, the oldest first; an older version kept the last one's."""
    known = variant.get("environments")
    found = known if isinstance(known, list) else [variant.get("environment")]
    return [each for each in found if isinstance(each, dict)]


def read_variant(folder: Path) -> dict[str, Any]:
    """The settings, and where it ran under the names of ENVIRONMENTS. Raises RunFolderError."""
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunFolderError(
            f"--resume: {folder} holds no run ({SETTINGS} is missing): "
            "give the run's --log_dir and --id, or --resume RUN_FOLDER"
        ) from None
    except (OSError, ValueError) as error:
        raise RunFolderError(f"--resume: {folder / SETTINGS} cannot be read ({error})") from None
    if not isinstance(settings, dict):
        raise RunFolderError(f"--resume: {folder / SETTINGS} holds no settings")
    return settings


def quiet_writers(told: threading.ExceptHookArgs) -> None:
    """TensorBoard's writer thread, whose error its next call raises where it is told in a line."""
    if not (isinstance(told.exc_value, OSError) and "AsyncWriter" in type(told.thread).__name__):
        threading.__excepthook__(told)


class Records:
    """Everything that a run writes line by line; a crash loses no line that was written.

    `resume_from`: (step, bytes of log.txt) when the loaded checkpoint was saved; what was written
    after it is removed, so that nothing comes twice.
    """

    def __init__(self, folder: Path, *, resume_from: tuple[int, int] | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        self.folder = folder
        threading.excepthook = quiet_writers
        self.columns: list[str] = []
        self.rows: list[dict[str, Any]] = []
        purge = None
        if resume_from is not None:
            step, log_bytes = resume_from
            (folder / "samples").mkdir(exist_ok=True)  # a copy may have lost an empty folder
            self._read_rows(step)
            if (folder / LOG).exists() and (folder / LOG).stat().st_size > log_bytes:
                os.truncate(folder / LOG, log_bytes)
            for path in folder.glob(LEFTOVERS):
                path.unlink()
            purge = step + 1
        self.text = open(folder / LOG, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        self.board = SummaryWriter(str(folder), purge_step=purge)

    def line(self, message: str) -> None:
        with naming(self.folder / LOG):
            self.text.write(message + "\n")

    def flush(self) -> int:
        """Everything to the disk, so that one that is full is noticed now; bytes of log.txt."""
        with naming(self.folder / LOG):
            self.text.flush()
            os.fsync(self.text.fileno())
        with naming(self.folder):
            self.board.flush()
        return (self.folder / LOG).stat().st_size

    def row(self, values: dict[str, Any]) -> None:
        """One epoch's row of progress.csv.

        The row of an epoch that an earlier process had only begun is replaced. A column that is
        new, where a resumed run logs more than before, is empty in the earlier rows.
        """
        if self.rows and str(self.rows[-1]["epoch"]) == str(values["epoch"]):
            self.rows.pop()
            self._write_rows()
        new = [name for name in values if name not in self.columns]
        if new:
            self.columns += new
            self._write_rows()
        self.rows.append(values)
        path = self.folder / PROGRESS
        with naming(path), open(path, "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writerow(values)
            file.flush()
            os.fsync(file.fileno())

    def scalars(self, values: dict[str, float], step: int) -> None:
        with naming(self.folder):
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def go_back(self, step: int) -> None:
        """The run goes on from this step: rows after it go; log.txt keeps what happened."""
        from torch.utils.tensorboard import SummaryWriter

        self.rows = [row for row in self.rows if int(row["step"]) <= step]
        self._write_rows()
        self.board.close()
        self.board = SummaryWriter(str(self.folder), purge_step=step + 1)

    def close(self) -> None:
        self.text.close()
        self.board.close()

    def _read_rows(self, step: int) -> None:
        """Keep the rows up to this step; a line that a crash cut off has too few fields."""
        path = self.folder / PROGRESS
        if not path.exists():
            return
        header, *lines = path.read_text(encoding="utf-8").split("\n")
        if lines:  # else the header itself was cut off
            self.columns = next(csv.reader([header]), [])
        whole = [row for row in csv.DictReader(lines, self.columns) if None not in row.values()]
        self.rows = [row for row in whole if int(row["step"]) <= step]
        self._write_rows()

    def _write_rows(self) -> None:
        path = self.folder / PROGRESS
        temporary = path.with_name(f".{PROGRESS}.tmp")
        with naming(path):
            with open(temporary, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, self.columns)
                if self.columns:
                    writer.writeheader()
                writer.writerows(self.rows)
            os.replace(temporary, path)


def read_progress(folder: Path) -> list[dict[str, str]]:
    """The rows of progress.csv, as text; [] while there is none."""
    path = folder / PROGRESS
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
