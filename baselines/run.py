"""Run a training program of this folder: build, open the run folder, train or resume.

A program is a `Program`: its flags, and an `Objective` that turns a batch into a loss. Everything
else - data, network, optimiser, schedule, records, checkpoints - is train_wrn.py's.
train_adversarial.py is a short example.
"""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import data
import models
from losses import Metrics
from runs.cli import Parser
from runs.endings import exit_code
from training.build import build_model, build_optimizer, held_out
from training.divergence import Guard
from training.machine import load_data
from training.session import update
from training.setup import begin, describe, run_in_folder
from training.state import Run


class Objective(nn.Module):
    """The loss that a program minimises. A subclass defines `terms` and `forward`.

    terms: names of the loss's parts, for the columns '<term>/loss' of progress.csv.
    """

    terms: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.memories = nn.ModuleDict()  # Run.memory reads it; no queue, no replay buffer

    def forward(
        self, model: Any, images: Tensor, labels: Tensor, epoch: int
    ) -> tuple[Tensor, Metrics]:
        """Return (loss, metrics) of a batch, model in train mode. Do not wait for the device.

        metrics: scalars on the device: '<term>/loss' and, where the class head is trained,
        'accuracy', without which no split is evaluated; the same names in all steps of an epoch.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Program:
    """The parts of a training program that differ from train_wrn.py.

    build_parser: as in baselines.flags. The settings must have `method`, the name of the training
        method, for variant.json and the default --id.
    objective: (settings, model) -> Objective; its parameters are trained with the model's.
    batches: the class of the training batches. Their random numbers come from the global generator
        or are a function of the step.
    optimizer: (settings, model, objective) -> an optimiser that skips its step for `found_inf`.
    model: (settings, classes, device) -> the network.
    initialise: (network of a new run, images of its first batch) -> None.
    """

    build_parser: Callable[[], Parser]
    objective: Callable[[Namespace, models.EnergyClassifier], Objective]
    batches: type[data.TrainingBatches] = data.TrainingBatches
    optimizer: Callable[[Namespace, nn.Module, nn.Module], torch.optim.Optimizer] = build_optimizer
    model: Callable[[Namespace, int, torch.device], models.EnergyClassifier] = build_model
    initialise: Callable[[Any, Tensor], None] = models.initialise_act_norm


def main(program: Program, settings: Namespace, given: set[str]) -> int:
    """Return the exit code: 0; 1 for a run that diverged; 2 for a user's mistake or a failed disk;
    130 for Ctrl-C. All but 0 come with one line on stderr."""
    s = settings
    return exit_code(
        s.program,
        lambda: work(program, s, given),
        interrupted=f"{s.program}: interrupted before the run began",
        lower=f"--batch_size {s.batch_size} or --image_size",
    )


def work(program: Program, s: Namespace, given: set[str]) -> int:
    with begin(s.program, s, given, s.method) as start:
        s, device = start.settings, start.device
        dataset = load_data(s, device)
        index, splits = held_out(s, dataset)
        index = index.to(device)
        batches = program.batches(
            dataset.train,
            index,
            index,  # all training images are labelled
            s.batch_size,
            s.seed,
            s.sigma,
            dataset.flips,
            unlabelled=False,
        )
        run = build_run(program, s, dataset.num_classes, device)
        run.data, run.steps_per_epoch = data.Record.of(dataset, s.n_valid), batches.steps_per_epoch
        if s.resume is None:
            program.initialise(run.model, batches(0)[0])
        with run_in_folder(start, run, splits) as session:
            setup = describe(run, f"{len(index):,} training images", f"method {s.method}", splits)
            session.records.say(f"{dataset.about}\n{setup}")
            for step in session:
                session.took(train_step(run, session.guard, batches(step), step))
        return session.code


def build_run(program: Program, s: Namespace, num_classes: int, device: torch.device) -> Run:
    model = program.model(s, num_classes, device)
    objective = program.objective(s, model).to(device)
    return Run(s, num_classes, model, objective, program.optimizer(s, model, objective))


def train_step(run: Run, guard: Guard, batch: tuple[Any, ...], step: int) -> Metrics:
    """Take one step and return its metrics, scalars on the device; do not wait for the device."""
    epoch = step // run.steps_per_epoch
    loss, metrics = run.objective(run.model, *batch[:2], epoch)
    detached = {name: value.detach() for name, value in {**metrics, "loss": loss}.items()}
    metrics, _ = update(run, guard, loss, detached, step)
    return metrics
