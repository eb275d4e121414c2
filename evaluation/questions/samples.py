"""The common part of uncond_samples and cond_samples. It imports torch: import it in functions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import data
import models
from evaluation import neighbours, plots, sampling
from evaluation.context import Context
from evaluation.loading import LoadedModel
from evaluation.sampling import Slots
from runs import processes as distributed
from runs.cli import UsageError
from runs.files import naming

COLUMNS = 10  # of a class-conditional grid, and chains of a trajectory
BESIDE = 6  # columns and rows of the samples beside their starts and training images
SNAPSHOTS = 10  # of a trajectory after its start
LONGEST_TRAJECTORY = 1000  # SGLD steps; longer ones look the same and cost a round each


def slots_of(context: Context, model: LoadedModel, classes: int) -> Slots:
    """Return the slots of the replay buffer. Raises UsageError where the chains need more."""
    buffer, chains = model.replay_buffer(classes), context.s.sgld_batch_size
    size = len(buffer.images) // classes
    if -(-chains // classes) > size:
        of = "" if classes == 1 else " of a class"
        raise UsageError(
            f"--sgld_batch_size {chains} is more than the {size * classes} slots{of} "
            f"of the replay buffer allow: use {size * classes} at most"
        )
    return Slots(buffer)


def classes_of(slots: Slots) -> Tensor:
    return slots.buffer.classes(torch.arange(len(slots.starts), device=slots.starts.device))


def run(
    context: Context,
    model: LoadedModel,
    slots: Slots,
    name: str,
    draw: Callable[[Tensor, Path, bool], None],
    conditional: bool = False,
) -> None:
    """Run the rounds under a progress bar, with a picture every --print_every rounds and at the end
    by draw(the round's images, path without suffix, whether it is the last).

    Raises NotFinite.
    """
    s = context.s
    rounds = sampling.sampling_rounds(
        model.network,
        slots,
        model.chain(s.n_steps, model.start()),
        rounds=s.n_sample_steps,
        chains=s.sgld_batch_size,
        seed=s.seed,
        conditional=conditional,
    )
    with context.bar(s.n_sample_steps, f"{model.label}: {name}", "round") as shown:
        for done, images in enumerate(rounds, 1):
            shown.update()
            if done % s.print_every and done != s.n_sample_steps:
                continue
            sampling.check_finite(images, done * s.n_steps)
            with torch.no_grad(), models.eval_mode(model.network):
                height = float(model.network.log_px(images).mean())
            if not distributed.first():
                continue
            shown.set_postfix({"log q(x)": f"{height:.4g}"})
            path = context.files.path(f"{name}_{done * s.n_steps}.png")
            with naming(path):
                draw(images, path.with_suffix(""), done == s.n_sample_steps)
            if path.with_suffix(".pdf").exists():
                context.files.path(path.with_suffix(".pdf").name)


def training_images(context: Context, model: LoadedModel) -> data.EvaluationSet | None:
    """Return the images that the model was trained on; None, with a warning, if that fails."""
    try:
        own = context.own_set(model, "leave it out")
        return context.images(data.split_name(own, "train"), model)
    except (data.DataError, UsageError) as error:
        if context.s.dataset is not None:
            raise
        context.warn(f"samples are not compared with training images: {error}")
        return None


def saved(
    context: Context, slots: Slots, labels: Tensor | None = None
) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Save the slots that chains have moved, and where these began. Return the samples' numbers,
    and both as uint8 (n, H, W, 3). `labels` (n,): their classes, if they have any."""
    s, moved = context.s, slots.buffer.images[slots.drawn]
    steps = s.n_sample_steps * s.n_steps
    sampling.check_finite(moved, steps)
    images, starts = map(sampling.to_uint8, (moved, slots.starts[slots.drawn]))
    context.save_images(f"{s.eval}.npz", images, starts, labels)
    each = steps * s.sgld_batch_size / len(images)
    return {"n": len(images), "steps": steps, "steps_per_sample": each}, images, starts


def beside_training(
    context: Context,
    training: data.EvaluationSet | None,
    images: Tensor,
    starts: Tensor,
    labels: Tensor | None = None,
) -> dict[str, Any]:
    """Draw samples uint8 (N, H, W, 3) beside their chains' starts and the nearest training images,
    if any: of their own class where `labels` (N,) are given. Return how near they are."""
    sets, numbers = {"start": starts, "sample": images}, dict[str, Any]()
    if training is not None:
        bank, of_bank = training.split.images, training.split.labels
        one = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        of_images, of_bank = (one, 0 * of_bank) if labels is None else (labels, of_bank)
        try:
            numbers, index = neighbours.compare_with_training(
                images, starts, of_images, bank, of_bank
            )
            sets["nearest training image"] = bank[index]
        except ValueError as error:
            context.warn(f"samples are not compared with training images: {error}")
    grids = {name: data.to_float(each) for name, each in sets.items()}
    columns, names = BESIDE, list[str]()
    if labels is None:
        grids = {name: each[: BESIDE * BESIDE] for name, each in grids.items()}
    else:
        columns, names = 3, [str(y) for y in range(int(labels.max()) + 1)]
        grids = {n: padded_rows(each, labels, len(names), columns) for n, each in grids.items()}
    context.files.picture(
        f"{context.s.eval}_starts",
        lambda path: plots.save_side_by_side(grids, path, columns=columns, row_labels=names),
    )
    return numbers


def padded_rows(images: Tensor, labels: Tensor, classes: int, columns: int = COLUMNS) -> Tensor:
    """Return the first `columns` images of each class, a class a row; missing images are black."""
    rows = []
    for y in range(classes):
        row = images[labels == y][:columns]
        black = row.new_full((columns - len(row), *row.shape[1:]), -1.0)
        rows.append(torch.cat([row, black]))
    return torch.cat(rows)


def draw_class_rows(images: Tensor, path: Path, classes: int, last: bool) -> None:
    """Draw one class a row, with its number; before the last round a plain grid, which
    is quicker to make."""
    if last:
        labels = [str(label) for label in range(classes)]
        plots.save_labelled_grid(images, path, row_labels=labels, columns=COLUMNS)
    else:
        plots.save_grid(images, path.with_suffix(".png"), COLUMNS)


def save_trajectory(context: Context, model: LoadedModel, labels: Tensor | None = None) -> None:
    """Draw new chains, one a row, on their way; of the classes `labels`, if any."""
    s = context.s
    steps = min(s.n_sample_steps * s.n_steps, LONGEST_TRAJECTORY)
    seen = sorted({i * steps // SNAPSHOTS for i in range(SNAPSHOTS + 1)})
    n = COLUMNS if labels is None else len(labels)
    legs = sampling.legs_of(model.chain(steps, model.start()), seen)
    (frames,) = sampling.fresh_chains(
        model.network, legs, n, seed=s.seed, batch_size=n, labels=labels
    )
    rows = [] if labels is None else [str(label) for label in labels.tolist()]
    context.files.picture(
        f"{s.eval}_trajectory",
        lambda path: plots.save_labelled_grid(
            torch.stack(frames, 1).flatten(0, 1),
            path,
            row_labels=rows,
            column_labels=[str(step) for step in seen],
            xlabel="SGLD steps",
        ),
    )
