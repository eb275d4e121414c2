"""Take a training program from its settings to a run in its folder, and to its exit code."""

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
    TRAINED_ON,
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
def begin(program: str, s: Namespace, given: set[str], label: str) -> Iterator[Start]:
    """Join the processes of torchrun. Draw --seed and make --id where the command line lacks them.
    Seed all random numbers. Yield the context of the run.

    label: the terms or the method, for the run's name.

    Raises UsageError for a missing device, or where only some processes find the run to resume.
    """
    began, device = time.monotonic(), choose_device(s.device)
    with distributed.together(device):
        use_threads(s, device, program)
        machine = environment(device)
        if s.seed is None:
            s.seed = torch.seed() % 2**31
        if s.resume is None and not s.id and not getattr(s, "dry_run", False):
            dataset = Path(s.dataset.removeprefix(FOLDER)).name
            s.id = f"{dataset}-{label}-{time.strftime('%Y%m%d-%H%M%S')}"
        if len(set(distributed.all_of(s.resume is None))) > 1:
            raise UsageError(
                f"--resume: not all processes find a run in {Path(s.log_dir) / s.id}: give a "
                "--log_dir that every machine sees"
            )
        s = distributed.from_first(s)
        torch.manual_seed(s.seed)
        folder = Path(s.log_dir) / (s.id or "")
        yield Start(program, s, given, folder, device, machine, began)


@contextmanager
def run_in_folder(
    start: Start,
    run: Run,
    splits: dict[str, data.Split],
    plot: Callable[[int, Session], None] | None = None,
) -> Iterator[Session]:
    """Lock the run folder. Create it or, with --resume, restore the run from it. Yield the session
    to iterate over. However the run ends, close its records and draw its curves.

    The exit code is then `session.code`: 0 for a run that ended by itself, 1 for a run that
    diverged or lost another process, 128 + the number of the signal that ended the run: 130 for
    Ctrl-C, 143 for SIGTERM, 129 for SIGHUP.

    Raises UsageError where the processes do not have the same training images.
    """
    program, folder, s, resume_from = start.program, start.folder, run.settings, None
    if len(set(distributed.all_of(run.data.fingerprint))) > 1:
        raise UsageError(
            f"--dataset {s.dataset}: the processes read different training images: give a "
            "--data_root, or a folder:PATH, that every machine sees"
        )
    first = distributed.first()
    with alone(folder, flag="--log_dir", program=program) if first else nullcontext():
        if s.resume is not None:
            restore_last(run, folder, program)
            resume_from = (run.progress.step, run.progress.log_bytes)
        elif first:
            given, start_file = "overwrite" in start.given, getattr(s, "load_path", None)
            check_free(folder, overwrite=s.overwrite, given=given, load_path=start_file)
            create_run_folder(folder, overwrite=s.overwrite)
        if first:
            settings = {**vars(s), TRAINED_ON: run.data.fingerprint}
            if s.dataset.startswith(FOLDER):
                settings["class_names"] = list(run.data.class_names)
            write_settings(folder, settings, start.environment)
        records = Records(folder, resume_from=resume_from) if first else NoRecords()
        session = Session(start, run, splits, records, plot)
        with session.signals.listen():
            try:
                yield session
                session.records.say(f"{session.ending}; the run is in {folder}")
                if first:
                    session.records.say(closing_lines(folder))
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
                cause = f"{distributed.LOST} ({distributed.reason(error)})"
                tell(f"{program}: {cause}; {session.last_good()}, --resume goes on")
                session.code = 1
            finally:
                # A later error must not hide the error that ended the run.
                with suppress(OSError, KeyboardInterrupt):
                    session.records.close()
                    if first and (rows := read_progress(folder)):
                        figures.save_curves(folder / "curves.png", rows)


def closing_lines(folder: Path) -> str:
    """Return the accuracies of a run that has ended, and the commands to go on with."""
    test, valid = (
        [(100 * float(row[name]), row["epoch"]) for row in read_progress(folder) if row.get(name)]
        for name in ("test_acc", "valid_acc")
    )
    text = f"test accuracy {test[-1][0]:.2f} %" if test else ""
    if valid:
        best, epoch = max(valid, key=lambda pair: pair[0])
        text += f", best validation accuracy {best:.2f} % after epoch {epoch}"
    path = shlex.quote(str(folder))
    if test:
        text += f"\nnext: python eval_wrn_ebm.py --load_path {path} --eval eval_ece"
    text += f"\na page of it, {folder / 'report.html'}: python scripts/report.py {path}"
    return text.lstrip("\n, ")


def describe(run: Run, images: str, loss: str, splits: dict[str, data.Split]) -> str:
    """Return three lines about data, network and device; `images`, `loss`: phrases for them."""
    s = run.settings
    sizes = ", ".join(f"{len(split.labels):,} {name}" for name, split in splits.items())
    sizes = sizes or "no validation or test images"
    network = network_title(vars(s)) + f", norm {s.norm}" * (s.arch == "wrn")
    parameters = sum(p.numel() for p in run.model.parameters())
    threads = f", threads {torch.get_num_threads()}" if run.device.type == "cpu" else ""
    devices = f"{run.device}{threads}"
    if distributed.size() > 1:
        devices = f"{distributed.size()} processes on {run.device.type}"
    return (
        f"{s.dataset}: {images}; {sizes}; images of {s.image_size} x {s.image_size}\n"
        f"{network}, {parameters:,} parameters; {loss}\n"
        f"{devices}, bf16 {'on' if run.model.amp else 'off'}, seed {s.seed}; "
        f"{run.progress.step:,} of {s.n_epochs * run.steps_per_epoch:,} steps done"
    )
