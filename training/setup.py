"""From the command line to a run in its folder, and to the exit code: for every program."""

from __future__ import annotations

import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

import data
from evaluation import figures
from runs import processes as distributed
from runs.checkpoint import CheckpointError
from runs.cli import UsageError, check_program, rank_is_0
from runs.endings import Signals, tell
from runs.files import alone
from runs.folder import (
    SETTINGS,
    NoRecords,
    Records,
    RunFolderError,
    check_free,
    create_run_folder,
    read_progress,
    read_settings,
    write_settings,
)
from runs.names import FOLDER, network_title
from runs.screen import print_line
from training import flags
from training.divergence import Diverged
from training.machine import choose_device, environment, use_threads
from training.output import Output
from training.state import Run, read_last, restore_last


def resumed_settings(
    s: Namespace, given: set[str], program: str, merge: Callable[..., Namespace]
) -> tuple[Namespace, Path]:
    """Return the settings and the folder of the run that --resume names, or --log_dir and --id.
    `merge` is training.flags.resume, for this program.

    Raises UsageError, and RunFolderError where the folder does not tell the settings.
    """
    folder = flags.resumed_folder(s, given)
    merged = merge(s, given, settings_of(folder, program))
    merged.log_dir, merged.id = str(folder.parent), folder.name
    return merged, folder


def settings_of(folder: Path, program: str) -> dict[str, Any]:
    """Return the run's settings: those of variant.json or, where it is missing or damaged, those of
    the last checkpoint, which a line on stderr says.

    Every process comes here before they meet, and before the folder is locked: nothing is moved.
    Raises RunFolderError where neither has them, and UsageError for a run of another program.
    """
    warning = None
    try:
        settings = read_settings(folder)
    except RunFolderError as error:
        try:
            settings = dict(read_last(folder)[1]["settings"])
        except (CheckpointError, OSError, KeyError, TypeError, ValueError):
            raise error from None
        lost = f"{folder / SETTINGS} is missing or damaged"
        warning = f"{program}: warning: {lost}; settings are the checkpoint's"
    check_program(settings, program, folder)
    if warning and rank_is_0():
        print_line(warning, sys.stderr)
    for name in ("num_classes", "class_names"):  # of the data
        settings.pop(name, None)
    return settings


class Start(NamedTuple):
    """The settings, folder, device and environment of a run that begins or is resumed."""

    program: str
    settings: Namespace  # the same in all processes
    given: set[str]  # the flags of the command line
    folder: Path  # of the run
    device: torch.device
    here: dict[str, Any]  # the environment of this process
    began: float  # time.monotonic()


@contextmanager
def begin(
    program: str, s: Namespace, given: set[str], merge: Callable[..., Namespace], what: str
) -> Iterator[Start]:
    """Join the processes of torchrun, on the device; find the run of --resume, or draw the seed and
    make the name that were not given; seed all random numbers.

    merge: as of `resumed_settings`. what: the terms or the method, for the run's name.

    Raises UsageError or RunFolderError where the folder cannot be that run's.
    """
    began, folder = time.monotonic(), None
    if s.resume is not None:
        s, folder = resumed_settings(s, given, program, merge)
    device = choose_device(s.device)
    with distributed.together(device):
        use_threads(s, device, program)
        here = environment(device)
        begins = folder is None and not getattr(s, "dry_run", False)
        if s.seed is None:
            s.seed = torch.seed() % 2**31
        if begins and not s.id:
            dataset = Path(s.dataset.removeprefix(FOLDER)).name
            s.id = f"{dataset}-{what}-{time.strftime('%Y%m%d-%H%M%S')}"
        if len(set(distributed.all_of(folder is None))) > 1:
            raise UsageError(
                f"--resume: not all processes find a run in {Path(s.log_dir) / s.id}: give a "
                "--log_dir that every machine sees"
            )
        s = distributed.from_first(s)
        torch.manual_seed(s.seed)
        folder = folder or Path(s.log_dir) / (s.id or "")
        if begins and distributed.first():
            check_free(folder, overwrite=s.overwrite, load_path=getattr(s, "load_path", None))
        yield Start(program, s, given, folder, device, here, began)


def run_in_folder(start: Start, run: Run, train: Callable[[Output, Signals], str]) -> int:
    """Lock the run folder and make it or, with --resume, restore the run from it; then train.
    Return 0 once `train` has returned why it ended, 1 for a run that diverged, 128 + its number for
    a signal that ended it: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP.

    However a run ends, its records are closed and its curves drawn.
    """
    program, folder, s, since = start.program, start.folder, run.settings, None
    first = distributed.first()
    with alone(folder, flag="--log_dir", program=program) if first else nullcontext():
        if s.resume is not None:
            restore_last(run, folder, program)
            since = (run.progress.step, run.progress.log_bytes)
        elif first:
            check_free(folder, overwrite=s.overwrite, given="overwrite" in start.given)
            create_run_folder(folder, overwrite=s.overwrite)
        if first:
            own = s.dataset.startswith(FOLDER)
            named = {"class_names": list(run.data.class_names)} if own and run.data else {}
            write_settings(folder, {**vars(s), **named}, start.here)
        out = Output(run, folder, Records(folder, resume_from=since) if first else NoRecords())
        out.saved_step = run.progress.step
        # One of several processes promises nothing that the end of another may prevent.
        signals = Signals(program, quiet=distributed.size() > 1)
        with signals.listen():
            try:
                ending = train(out, signals)
                out.records.say(f"{ending}; the run is in {folder}")
                if first:
                    out.records.say(reached(folder))
            except Diverged as error:
                out.records.line(str(error))
                tell(f"{program}: {error}")
                return 1
            except KeyboardInterrupt:
                distributed.part()
                tell(f"\n{program}: interrupted; {out.last_good()}, --resume goes on")
                return 130
            except RuntimeError as error:
                if not distributed.is_lost(error):
                    raise
                distributed.part()
                why = f"{distributed.LOST} ({distributed.reason(error)})"
                tell(f"{program}: {why}; {out.last_good()}, --resume goes on")
                return 1
            finally:
                # The user must read what ended the run, not what fails after it.
                with suppress(OSError, KeyboardInterrupt):
                    out.records.close()
                    if first and (rows := read_progress(folder)):
                        figures.save_curves(folder / "curves.png", rows)
        return 128 + signals.received if signals.obeyed else 0


def reached(folder: Path) -> str:
    """Return the accuracies of a run that has ended, and the next commands."""
    tested, valid = (
        [(100 * float(row[name]), row["epoch"]) for row in read_progress(folder) if row.get(name)]
        for name in ("test_acc", "valid_acc")
    )
    told = f"test accuracy {tested[-1][0]:.2f} %" if tested else ""
    if valid:
        best, epoch = max(valid, key=lambda pair: pair[0])
        told += f", best validation accuracy {best:.2f} % after epoch {epoch}"
    place = shlex.quote(str(folder))
    asked = f"\nnext: python eval_wrn_ebm.py --load_path {place} --eval eval_ece"
    page = f"\na page of it, {folder / 'report.html'}: python scripts/report.py {place}"
    return (told + asked * bool(tested) + page).lstrip("\n, ")


def describe(run: Run, images: str, loss: str, splits: dict[str, data.Split]) -> str:
    """Return what is trained, in three lines; `images` and `loss` in the program's words."""
    s = run.settings
    sizes = ", ".join(f"{len(split.labels):,} {name}" for name, split in splits.items())
    sizes = sizes or "no validation or test images"
    network = f"{network_title(vars(s))}" + f", norm {s.norm}" * (s.arch == "wrn")
    parameters = sum(p.numel() for p in run.model.parameters())
    threads = f", threads {torch.get_num_threads()}" if run.device.type == "cpu" else ""
    on = f"{run.device}{threads}"
    if distributed.size() > 1:
        on = f"{distributed.size()} processes on {run.device.type}"
    return (
        f"{s.dataset}: {images}; {sizes}; images of {s.image_size} x {s.image_size}\n"
        f"{network}, {parameters:,} parameters; {loss}\n"
        f"{on}, bf16 {'on' if run.model.amp else 'off'}, seed {s.seed}; "
        f"{run.progress.step:,} of {s.n_epochs * run.steps_per_epoch:,} steps done"
    )
