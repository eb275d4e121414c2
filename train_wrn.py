#!/usr/bin/env python3
"""Train a network as a classifier and an energy-based model: flags, build, step.

    python train_wrn.py --dataset digits --pyxce 1 --pxycontrast 1 --depth 10 --width 2

A batch's path: uint8 images on the device -> crop, flip, scale, noise -> one forward pass ->
every term of the objective reads its logits -> one backward pass -> one update, unless the step
has diverged -> queue and replay buffer store the step's logits and samples. Between two steps,
training/session.py evaluates, reports and saves. Under torchrun each process takes its part of
every batch, and the gradients are averaged once a step: runs/processes.py.
"""

from __future__ import annotations

import sys

from training import flags

if __name__ == "__main__":  # before the slow import of torch: --help and errors appear at once
    COMMAND_LINE = flags.parse(sys.argv[1:], files=True)

from argparse import Namespace

import torch
from torch import Tensor

import losses
from evaluation import figures
from evaluation.sampling import Sampler
from runs import terms
from runs.endings import exit_code, leave
from runs.files import naming
from runs.names import FOLDER
from training import cost
from training.build import build_batches, replicate, start_run
from training.divergence import Guard
from training.flags import PROGRAM
from training.machine import load_data
from training.session import Session, term_gradients, update
from training.setup import begin, describe, run_in_folder
from training.state import Run


def work(s: Namespace, given: set[str]) -> int:
    """Train, or time a few steps for --dry_run. Return the exit code."""
    objective = "-".join(term.name for term in terms.used(vars(s)))  # for the run's name
    with begin(PROGRAM, s, given, objective) as start:
        s, device = start.settings, start.device
        if s.dry_run:
            cost.dry_run(s, device, train_step)
            return 0

        dataset = load_data(s, device)
        flags.check_classes(s, dataset.num_classes)
        batches, splits = build_batches(s, dataset)
        # Before the run folder is made, so that a mistake in --load_path leaves no folder.
        run = start_run(s, dataset, batches)

        with run_in_folder(start, run, splits, plot_samples) as session:
            images = f"{len(batches.index):,} training images, {len(batches.labelled):,} labelled"
            weights = run.objective.weights.items()
            loss = "loss " + " + ".join(f"{weight:g} {name}" for name, weight in weights)
            session.records.say(f"{dataset.about}\n{describe(run, images, loss, splits)}")
            if "workers" in given:
                line = f"--workers {s.workers} has no effect: images live on the training device"
                session.records.say(line)
            replicate(run)
            for step in session:
                session.took(train_step(run, session.guard, batches(step), step))
        return session.code


def train_step(
    run: Run, guard: Guard, batch: tuple[Tensor, Tensor, Tensor | None], step: int
) -> losses.Metrics:
    """Update the network on one batch: images, labels, and unlabelled images or None. Return the
    metrics, scalars on the device. Nothing here waits for the device."""
    if run.replicas is None:
        forward = losses.Step.forward(run.model, *batch)
        loss, term_losses, metrics = run.objective.with_terms(forward)
    else:
        loss = run.replicas(*batch)
        term_losses, metrics, forward = run.replicas.module.rest
    if run.settings.log_gradients and step % run.settings.log_gradients == 0:
        parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
        gradient_metrics = term_gradients(term_losses, parameters)
        run.gradients.add(torch.stack(list(gradient_metrics.values())), list(gradient_metrics))
    metrics["accuracy"] = (forward.logits.argmax(1) == forward.labels).float().mean()
    metrics, skip = update(run, guard, loss, metrics, step)
    run.objective.commit(forward, skip)
    return metrics


@torch.compiler.set_stance("force_eager")
def plot_samples(epoch: int, session: Session) -> None:
    """Draw the grids of --plot_uncond, --plot_cond and --plot_contrast."""
    run = session.run
    s, buffer = run.settings, run.memory("replay_buffer")
    chain = losses.Chain.of(s, None if buffer is None else buffer.start)
    sampler = Sampler(run.model, buffer, chain, seed=epoch)
    slots = s.buffer_size if buffer is None else len(buffer.images)  # this process's part
    columns = max(1, min(10, slots // run.num_classes))
    grids: dict[str, tuple[Tensor, int | None]] = {}  # images (N, 3, H, W), columns
    if s.plot_uncond:
        grids["uncond"] = sampler.unconditional(min(s.sgld_batch_size, slots)), None
    if s.plot_cond:
        grids["cond"] = sampler.conditional(run.num_classes, columns), columns
    if s.plot_contrast:
        name = next(term.name for term in terms.used(vars(s)) if term.queue)
        term = run.objective.terms[name]
        images = sampler.conditional(
            run.num_classes, columns, lambda x, y: -term.per_image(run.model.logits(x), y)
        )
        grids["contrast"] = images, columns
    for name, (images, width) in grids.items():
        path = session.folder / "samples" / f"{name}_{epoch:04d}.png"
        names = run.data.class_names if s.dataset.startswith(FOLDER) else ()
        with naming(path):
            picture = figures.save_grid(path, images, width, names if width else ()).numpy()
        # At the step, so that a run that is killed and resumed replaces this picture.
        session.records.picture(f"samples/{name}", picture, run.progress.step)


def main(s: Namespace, given: set[str]) -> int:
    """Return the exit code: 0; 1 for a run that diverged, 2 for a user's mistake or a failed disk,
    130 for Ctrl-C, each with one line on stderr."""
    return exit_code(
        PROGRAM,
        lambda: work(s, given),
        interrupted=f"{PROGRAM}: interrupted before the run began",
        lower=f"--batch_size {s.batch_size}, --sgld_batch_size, --buffer_size, --contrast_k, "
        "--image_size or --max_restarts",
    )


if __name__ == "__main__":
    leave(main(*COMMAND_LINE))
