"""The work of every training program before its first step: settings, images, optimiser."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import data
from runs import folder as records
from runs import processes as distributed
from runs.checkpoint import CheckpointError
from runs.cli import UsageError, check_program, rank_is_0
from runs.folder import LAST
from runs.names import ADAM_BETAS, FOLDER
from runs.screen import print_line
from training.state import Run, read_last

# Of training.flags.resume, say: settings of the command line, flags given, settings of the run.
Merge = Callable[[Namespace, set[str], dict[str, Any]], Namespace]


def resumed_settings(
    s: Namespace, given: set[str], program: str, merge: Merge
) -> tuple[Namespace, Path]:
    """Return the settings and the folder of the run that --resume names, or --log_dir and --id.

    Raises UsageError, and RunFolderError where the folder does not tell the settings.
    """
    if not s.resume and not s.id:
        raise UsageError("--resume: which run? give --resume RUN_FOLDER, or --log_dir and --id")
    if s.resume and {"id", "log_dir"} & given:
        raise UsageError(f"--resume {s.resume} names the run: leave --id and --log_dir out")
    folder = Path(s.resume) if s.resume else Path(s.log_dir) / s.id
    if folder.is_file():
        if folder.name != LAST:
            raise UsageError(
                f"--resume {s.resume} is a file: give the run's folder, which goes on from its "
                "last checkpoint, or start a new run from this one with --load_path"
            )
        folder = folder.parent
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
        settings = records.read_settings(folder)
    except records.RunFolderError as error:
        try:
            settings = dict(read_last(folder)[1]["settings"])
        except (CheckpointError, OSError, KeyError, TypeError, ValueError):
            raise error from None
        warning = f"{program}: warning: {error}; settings are the checkpoint's"
    check_program(settings, program, folder)
    if warning and rank_is_0():
        print_line(warning, sys.stderr)
    settings.pop("num_classes", None)
    return settings


def new_name(s: Namespace, what: str) -> str:
    """Return the name of a run that is given none: data set, what is trained, date and time."""
    dataset = Path(s.dataset.removeprefix(FOLDER)).name
    return f"{dataset}-{what}-{time.strftime('%Y%m%d-%H%M%S')}"


def held_out(s: Namespace, dataset: data.DataSet) -> tuple[torch.Tensor, dict[str, data.Split]]:
    """Return the indices of the training images, and what to evaluate on: valid and test, where
    they have images."""
    index, valid = data.hold_out(dataset, s.n_valid)
    splits = {"valid": dataset.train.take(valid), "test": dataset.test}
    return index, {name: split for name, split in splits.items() if len(split.labels)}


def build_optimizer(s: Namespace, *modules: nn.Module) -> torch.optim.Optimizer:
    """Build a fused optimiser: it takes `found_inf`, so the device itself skips a diverged step."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    shared: dict[str, Any] = {"lr": s.lr, "weight_decay": s.weight_decay, "fused": True}
    if s.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=0.9, **shared)
    betas = getattr(s, "adam_betas", ADAM_BETAS)
    return torch.optim.Adam(parameters, betas=(betas[0], betas[1]), **shared)


def describe(run: Run, images: str, loss: str, splits: dict[str, data.Split]) -> str:
    """Return what is trained, in three lines; `images` and `loss` in the program's words."""
    s = run.settings
    sizes = ", ".join(f"{len(split.labels):,} {name}" for name, split in splits.items())
    network = "ResNet-50" if s.arch == "resnet50" else f"WRN-{s.depth}-{s.width}, norm {s.norm}"
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
