"""The common part of this folder's training programs: build, open the run folder, train, resume.

A program is a `Program`: its flags, and an `Objective` that turns a batch into a loss. Everything
else - data, network, optimiser, schedule, records, checkpoints - is train_wrn.py's.

    class Plain(Objective):
        terms = ("pyxce",)

        def forward(self, model, images, labels, epoch):
            logits = model.logits(images)
            loss = F.cross_entropy(logits, labels)
            accuracy = (logits.argmax(1) == labels).float().mean()
            return loss, {"pyxce/loss": loss, "accuracy": accuracy}

    PROGRAM = Program("train_x.py", build_parser, check, lambda s: "x", lambda s, model: Plain())

    if __name__ == "__main__":
        sys.exit(main(PROGRAM, *COMMAND_LINE))
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import data
import models
from baselines.objective import Batches, Objective, train_step
from baselines.resume import resumed_settings
from runs import folder as records
from runs.cli import Parser
from runs.endings import Signals, exit_code
from runs.files import alone
from training.machine import build_network, choose_device, environment, load_data
from training.output import Output
from training.session import Session, run_exit_code
from training.state import Run, restore_last

__all__ = ["Batches", "Objective", "Program", "main"]


def build_optimizer(s: Namespace, model: nn.Module, objective: nn.Module) -> torch.optim.Optimizer:
    """Adam or SGD over all parameters of both; fused, so that a diverged step can be skipped."""
    parameters = [*model.parameters(), *objective.parameters()]
    if s.optimizer == "adam":
        return torch.optim.Adam(
            parameters, lr=s.lr, betas=(0.9, 0.999), weight_decay=s.weight_decay, fused=True
        )
    return torch.optim.SGD(
        parameters, lr=s.lr, momentum=0.9, weight_decay=s.weight_decay, fused=True
    )


def augmented_batches(s: Namespace, dataset: data.DataSet, index: torch.Tensor) -> Batches:
    """train_wrn.py's labelled batches: padded crops, mirrored, with noise --sigma."""
    batches = data.TrainingBatches(
        dataset.train,
        index,
        index,
        batch_size=s.batch_size,
        seed=s.seed,
        sigma=s.sigma,
        flip=dataset.flips,
        unlabelled=False,
    )
    return Batches(lambda step: batches(step)[:2], batches.steps_per_epoch)


@dataclass(frozen=True)
class Program:
    """The parts in which programs differ.

    name: of its file, as in messages and variant.json.
    build_parser, check: as in baselines.flags.
    method: settings -> the name of what is trained, in variant.json and in the default --id.
    objective: (settings, model) -> Objective; its parameters are trained
        with the model's.
    fixed: its own flags that may not change on --resume.
    batches: (settings, data set on the device, indices of its training images) -> Batches, whose
        random numbers come from the global generator or are a function of the step.
    optimizer: (settings, model, objective) -> an optimiser that heeds `found_inf`.
    """

    name: str
    build_parser: Callable[[], Parser]
    check: Callable[[Namespace], None]
    method: Callable[[Namespace], str]
    objective: Callable[[Namespace, models.EnergyClassifier], Objective]
    fixed: tuple[str, ...] = ()
    batches: Callable[[Namespace, data.DataSet, torch.Tensor], Batches] = augmented_batches
    optimizer: Callable[[Namespace, nn.Module, nn.Module], torch.optim.Optimizer] = build_optimizer


def main(program: Program, settings: Namespace, given: set[str]) -> int:
    """The exit code: 0, 1 for a run that diverged, 2 for a user's mistake or a disk that failed,
    130 for Ctrl-C; each with one line on stderr."""
    return exit_code(
        program.name,
        lambda: work(program, settings, given),
        interrupted=f"{program.name}: interrupted before the run began",
        lower=f"--batch_size {settings.batch_size} or --image_size",
    )


def work(program: Program, s: Namespace, given: set[str]) -> int:
    began, resuming = time.monotonic(), s.resume is not None
    if resuming:
        s, folder = resumed_settings(s, given, program.build_parser, program.check, program.fixed)
    device = choose_device(s.device)
    here = environment(device)
    if s.seed is None:
        s.seed = torch.seed() % 2**31
    torch.manual_seed(s.seed)
    s.program, s.method = program.name, program.method(s)
    if not resuming:
        dataset_name = Path(s.dataset.removeprefix("folder:")).name
        s.id = s.id or f"{dataset_name}-{s.method}-{time.strftime('%Y%m%d-%H%M%S')}"
        folder = Path(s.log_dir) / s.id
        records.check_free(folder, overwrite=s.overwrite)

    dataset = load_data(s, device, program.name)
    index, splits = split(s, dataset)
    batches = program.batches(s, dataset, index)
    run = build_run(program, s, dataset.num_classes, device)
    run.data = data.Record.of(dataset, s.n_valid)
    with alone(folder, flag="--log_dir", program=program.name):
        since = None
        if resuming:
            restore_last(run, folder, program.name)
            since = (run.progress.step, run.progress.log_bytes)
        else:
            models.initialise_act_norm(run.model, batches(0)[0])
            records.check_free(folder, overwrite=s.overwrite, given="overwrite" in given)
            records.create_run_folder(folder, overwrite=s.overwrite)
        records.write_settings(folder, vars(s), here)
        out = Output(folder, records.Records(folder, resume_from=since))
        out.saved_step = run.progress.step
        out.records.say(f"{dataset.about}\n{describe(run, batches, len(index), splits)}")
        return run_exit_code(
            program.name, out, lambda signals: train(run, batches, splits, out, began, signals)
        )


def train(
    run: Run,
    batches: Batches,
    splits: dict[str, data.Split],
    out: Output,
    began: float,
    signals: Signals,
) -> str:
    """Take all steps of the run. Return why it ended. Raises Diverged."""
    run.steps_per_epoch = batches.steps_per_epoch
    session = Session(run, splits, out, signals, began, classifies=run.objective.classifies)
    for step in session:
        epoch = step // run.steps_per_epoch
        session.took(train_step(run, session.guard, *batches(step), step=step, epoch=epoch))
    return session.ending


def build_run(program: Program, s: Namespace, num_classes: int, device: torch.device) -> Run:
    model = build_network(s, num_classes, device)
    objective = program.objective(s, model).to(device)
    return Run(s, num_classes, model, objective, program.optimizer(s, model, objective))


def split(s: Namespace, dataset: data.DataSet) -> tuple[torch.Tensor, dict[str, data.Split]]:
    """Indices of the training images, and what to evaluate on: valid and test, where there are."""
    train, device = dataset.train, dataset.train.images.device
    index, valid = data.hold_out(dataset, s.n_valid)
    splits = {"valid": train.take(valid), "test": dataset.test}
    return index.to(device), {name: part for name, part in splits.items() if len(part.labels)}


def describe(run: Run, batches: Batches, images: int, splits: dict[str, data.Split]) -> str:
    s = run.settings
    sizes = ", ".join(f"{len(part.labels):,} {name}" for name, part in splits.items())
    network = "ResNet-50" if s.arch == "resnet50" else f"WRN-{s.depth}-{s.width}, norm {s.norm}"
    parameters = sum(p.numel() for p in run.model.parameters())
    return (
        f"{s.method} on {s.dataset}: {images:,} training images; {sizes}; "
        f"images of {s.image_size} x {s.image_size}\n{network}, {parameters:,} parameters\n"
        f"{run.device}, bf16 {'on' if run.model.amp else 'off'}, seed {s.seed}; "
        f"{run.progress.step:,} of {s.n_epochs * batches.steps_per_epoch:,} steps done"
    )
