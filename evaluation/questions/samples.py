"""The common part of uncond_samples and cond_samples. It imports torch: import it in functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import data
import models
from evaluation import neighbours, plots, sampling
from evaluation.context import Context
from evaluation.loading import LoadedModel
from losses import ReplayBuffer
from runs import processes as distributed
from runs.cli import UsageError
from runs.files import naming

COLUMNS = 10  # of a class-conditional grid, and chains of a trajectory
BESIDE = 6  # columns and rows of the samples beside their starts and training images
LONGEST_TRAJECTORY = 1000  # SGLD steps; longer ones look the same and cost a round each


class Sampling:
    """The rounds of SGLD on the slots of a replay buffer, up log q(x) or, if `conditional`, up
    log q(x, y).

    Raises UsageError, before they begin, where the checkpoint has no buffer or too small a one.
    """

    def __init__(self, context: Context, model: LoadedModel, classes: int) -> None:
        self.context, self.model, s = context, model, context.s
        self.buffer = model.replay_buffer(classes)
        check_size(self.buffer, s.sgld_batch_size)
        self.begun = sampling.Begun(self.buffer)

    def run(
        self, name: str, draw: Callable[[Tensor, Path, bool], None], *, conditional: bool = False
    ) -> None:
        """Run the rounds under a progress bar, with a picture every --print_every rounds and at
        the end by draw(the round's images, path without suffix, whether it is the last).

        Raises NotFinite where chains are no longer finite.
        """
        s, context, model = self.context.s, self.context, self.model
        with context.bar(s.n_sample_steps, f"{model.label}: {name}", "round") as shown:
            for done, images in enumerate(self.rounds(conditional), 1):
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

    def rounds(self, conditional: bool) -> Iterator[Tensor]:
        s, model = self.context.s, self.model
        rounds = sampling.conditional_rounds if conditional else sampling.sampling_rounds
        return rounds(
            model.network,
            self.buffer,
            model.chain(s.n_steps, model.start()),
            rounds=s.n_sample_steps,
            chains=s.sgld_batch_size,
            seed=s.seed,
            begun=self.begun,
        )

    @property
    def classes(self) -> Tensor:
        """Return the class of each slot, (size,)."""
        size, device = len(self.buffer.images), self.buffer.images.device
        return self.buffer.classes(torch.arange(size, device=device))

    def pixels(self) -> tuple[Tensor, Tensor]:
        """Return the slots that chains have moved, and these chains' starts: uint8 (n, H, W, 3)."""
        sets = (each[self.begun.drawn] for each in (self.buffer.images, self.begun.images))
        images, starts = map(sampling.to_uint8, sets)
        return images, starts


def check_size(buffer: ReplayBuffer, chains: int) -> None:
    classes = buffer.num_classes
    size = len(buffer.images) // classes
    if -(-chains // classes) > size:
        of = "" if classes == 1 else " of a class"
        raise UsageError(
            f"--sgld_batch_size {chains} is more than the {size * classes} slots{of} "
            f"of the replay buffer allow: use {size * classes} at most"
        )


def numbers_of(context: Context, n: int) -> dict[str, Any]:
    """Return the number of samples, of SGLD steps in all, and of steps a sample on average."""
    steps = context.s.n_sample_steps * context.s.n_steps
    return {"n": n, "steps": steps, "steps_per_sample": steps * context.s.sgld_batch_size / n}


def training_images(context: Context, model: LoadedModel) -> data.EvaluationSet | None:
    """Return the images that the model was trained on. Print a line and return None if they cannot
    be read."""
    try:
        own = context.own_set(model, "leave it out")
        return context.images(data.split_name(own, "train"), model)
    except (data.DataError, UsageError) as error:
        if context.s.dataset is not None:
            raise
        context.warn(f"samples are not compared with training images: {error}")
        return None


def beside_training(
    context: Context,
    training: data.EvaluationSet | None,
    samples: Tensor,
    starts: Tensor,
    labels: Tensor | None,
) -> dict[str, Any]:
    """Numbers and a picture of samples uint8 (N, H, W, 3), where their chains began, and the
    nearest training images, where there are any: of their own class where `labels` (N,) are
    given."""
    sets, numbers = {"start": starts, "sample": samples}, dict[str, Any]()
    if training is not None:
        bank, of_bank = training.split.images, training.split.labels
        if labels is None:
            of_samples, of_bank = labels_like(samples), torch.zeros_like(of_bank)
        else:
            of_samples = labels
        try:
            numbers, index = neighbours.compare_with_training(
                samples, starts, of_samples, bank, of_bank
            )
            sets["nearest training image"] = bank[index]
        except ValueError as error:
            context.warn(f"samples are not compared with training images: {error}")
    grids = {name: data.to_float(images) for name, images in sets.items()}
    if labels is None:
        columns, names = BESIDE, list[str]()
        grids = {name: each[: BESIDE * BESIDE] for name, each in grids.items()}
    else:
        columns, names = 3, [str(y) for y in range(int(labels.max()) + 1)]
        grids = {n: padded_rows(each, labels, len(names), columns) for n, each in grids.items()}
    context.files.picture(
        f"{context.s.eval}_starts",
        lambda path: plots.save_side_by_side(grids, path, columns=columns, row_labels=names),
    )
    return numbers


def labels_like(images: Tensor) -> Tensor:
    """Label all images as one class: int64 (N,)."""
    return torch.zeros(len(images), dtype=torch.int64, device=images.device)


def padded_rows(images: Tensor, labels: Tensor, classes: int, columns: int) -> Tensor:
    """Return the first `columns` images of each class, a row a class; missing ones are black."""
    rows = []
    for y in range(classes):
        row = images[labels == y][:columns]
        black = row.new_full((columns - len(row), *row.shape[1:]), -1.0)
        rows.append(torch.cat([row, black]))
    return torch.cat(rows)


def draw_class_rows(images: Tensor, path: Path, classes: int, last: bool) -> None:
    """Draw a class a row, with its number; before the last round a plain grid: that is quicker."""
    if not last:
        plots.save_grid(images, path.with_suffix(".png"), COLUMNS)
        return
    labels = [str(label) for label in range(classes)]
    plots.save_labelled_grid(images, path, row_labels=labels, columns=COLUMNS)


def save_trajectory(context: Context, model: LoadedModel, labels: Tensor | None) -> None:
    """A picture of new chains, one a row, on their way; of the classes `labels`, if any."""
    s = context.s
    steps = min(s.n_sample_steps * s.n_steps, LONGEST_TRAJECTORY)
    seen = sampling.snapshot_steps(steps, min(10, steps))
    n = COLUMNS if labels is None else len(labels)
    legs = sampling.legs_of(model.chain(steps, model.start()), seen)
    (frames,) = sampling.fresh_chains(
        model.network, legs, n, seed=s.seed, batch_size=n, labels=labels
    )
    images = torch.stack(frames, 1)
    rows = [] if labels is None else [str(label) for label in labels.tolist()]
    context.files.picture(
        f"{s.eval}_trajectory",
        lambda path: plots.save_labelled_grid(
            images.flatten(0, 1),
            path,
            row_labels=rows,
            column_labels=[str(step) for step in seen],
            xlabel="SGLD steps",
        ),
    )
