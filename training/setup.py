"""From the command line to a run in its folder, and to the exit code: for every program."""

from __future__ import annotations

import shlex
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import torch

import data
from evaluation import figures
from runs import processes as distributed
from runs.cli import UsageError
from runs.endings import tell
from runs.files import alone
from runs.folder import (
    NoRecords,
    Records,
    check_free,
    create_run_folder,
    read_progress,
    write_settings,
)
from runs.names import FOLDER, network_title
from training.divergence import Diverged
from training.machine import choose_device, environment, use_threads
from training.session import Session
from training.state import Run, Start, restore_last


@contextmanager
def begin(program: str, s: Namespace, given: set[str], what: str) -> Iterator[Start]:
    """Join the processes of torchrun, on the device; draw the seed and make the name that were not
    given; seed all random numbers.

    what: the terms or the method, for the run's name.

    Raises UsageError or RunFolderError where the folder cannot be that run's.
    """
    began, device = time.monotonic(), choose_device(s.device)
    with distributed.together(device):
        use_threads(s, device, program)
        here = environment(device)
        begins = s.resume is None and not getattr(s, "dry_run", False)
        if s.seed is None:
            s.seed = torch.seed() % 2**31
        if begins and not s.id:
            dataset = Path(s.dataset.removeprefix(FOLDER)).name
            s.id = f"{dataset}-{what}-{time.strftime('%Y%m%d-%H%M%S')}"
        if len(set(distributed.all_of(s.resume is None))) > 1:
            raise UsageError(
                f"--resume: not all processes find a run in {Path(s.log_dir) / s.id}: give a "
                "--log_dir that every machine sees"
            )
        s = distributed.from_first(s)
        torch.manual_seed(s.seed)
        folder = Path(s.log_dir) / (s.id or "")
        yield Start(program, s, given, folder, device, here, began)


@contextmanager
def run_in_folder(
    start: Start,
    run: Run,
    splits: dict[str, data.Split],
    plot: Callable[[int, Session], None] | None = None,
) -> Iterator[Session]:
    """Lock the run folder and make it or, with --resume, restore the run from it; then give the
    session, to be iterated over.

    Its `code` is then 0 for a run that has ended by itself, 1 for one that diverged, 128 + its
    number for a signal that ended it: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP. However a
    run ends, its records are closed and its curves drawn.
    """
    program, folder, s, since = start.program, start.folder, run.settings, None
    first = distributed.first()
    with alone(folder, flag="--log_dir", program=program) if first else nullcontext():
        if s.resume is not None:
            restore_last(run, folder, program)
            since = (run.progress.step, run.progress.log_bytes)
        elif first:
            given, start_file = "overwrite" in start.given, getattr(s, "load_path", None)
            check_free(folder, overwrite=s.overwrite, given=given, load_path=start_file)
            create_run_folder(folder, overwrite=s.overwrite)
        if first:
            own = s.dataset.startswith(FOLDER)
            named = {"class_names": list(run.data.class_names)} if own and run.data else {}
            write_settings(folder, {**vars(s), **named}, start.here)
        records = Records(folder, resume_from=since) if first else NoRecords()
        session = Session(start, run, splits, records, plot)
        with session.signals.listen():
            try:
                yield session
                session.records.say(f"{session.ending}; the run is in {folder}")
                if first:
                    session.records.say(reached(folder))
            except Diverged as error:
                session.records.line(str(error))
                tell(f"{program}: {error}")
                session.code = 1
            except KeyboardInterrupt:
                distributed.part()
                tell(f"\n{program}: interrupted; {session.last_good()}, --resume goes on")
                session.code = 130
            except RuntimeError as error:
                if not distributed.is_lost(error):
                    raise
                distributed.part()
                why = f"{distributed.LOST} ({distributed.reason(error)})"
                tell(f"{program}: {why}; {session.last_good()}, --resume goes on")
                session.code = 1
            finally:
                # The user must read what ended the run, not what fails after it.
                with suppress(OSError, KeyboardInterrupt):
                    session.records.close()
                    if first and (rows := read_progress(folder)):
                        figures.save_curves(folder / "curves.png", rows)


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
