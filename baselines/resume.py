"""A run goes on from its folder: settings from variant.json, state from its last checkpoint."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from baselines import flags
from baselines.flags import Build, Check
from training import checkpoint, records
from training.checkpoint import CheckpointError, read_checkpoint
from training.flags import UsageError
from training.state import Run, restore


def resumed_settings(
    s: Namespace, given: set[str], build: Build, check: Check, fixed: Sequence[str]
) -> tuple[Namespace, Path]:
    """The settings and the folder of the run that --resume names. Raises UsageError."""
    if not s.resume and not s.id:
        raise UsageError("--resume: which run? give --resume RUN_FOLDER, or --log_dir and --id")
    if s.resume and {"id", "log_dir"} & given:
        raise UsageError(f"--resume {s.resume} names the run: leave --id and --log_dir out")
    folder = Path(s.resume) if s.resume else Path(s.log_dir) / s.id
    s.resume = str(folder)
    saved = records.read_settings(folder)
    merged = flags.resume(s, given, saved, build=build, check=check, fixed=fixed)
    merged.log_dir, merged.id = str(folder.parent), folder.name
    return merged, folder


def load_last(run: Run, folder: Path, program: str) -> None:
    """Make `run` what the last checkpoint saw or, if that is damaged, the one before it."""
    path, previous = folder / checkpoint.LAST, folder / checkpoint.PREVIOUS
    try:
        state = read_checkpoint(path)
    except CheckpointError as error:
        if not previous.exists():
            why = f"{error}" if path.exists() else "it stopped before its first checkpoint"
            raise CheckpointError(f"--resume {folder}: {why}: start it with --overwrite") from None
        print(f"{program}: warning: {error}; resuming from {previous}", file=sys.stderr)
        state = read_checkpoint(previous)
        if path.exists():  # out of the way: the next save must not keep it in place of the good one
            path.replace(folder / checkpoint.DAMAGED)
    try:
        restore(run, state)
    except CheckpointError as error:
        raise CheckpointError(f"--resume {folder}: {error}") from None
