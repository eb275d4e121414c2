"""A run goes on from its folder: its settings from variant.json."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from baselines import flags
from baselines.flags import Build, Check
from runs import folder as records
from runs.cli import UsageError


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
