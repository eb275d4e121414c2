"""Run and draw rounds of sampling on a replay buffer. Imports torch: import it in functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import data
import models
from evaluation import figures, neighbours, sampling
from evaluation.context import Context
from evaluation.loading import LoadedModel
from runs import processes as distributed
from runs.cli import UsageError

COLUMNS = 10  # of a class-conditional grid; also the most chains in a trajectory picture
STARTS_GRID = 6  # rows and columns of samples beside their starts and training images
SNAPSHOTS = 10  # images of a trajectory after its start
LONGEST_TRAJECTORY = 1000  # SGLD steps; longer trajectories look the same but take longer


class Rounds:
    """Run chains on the slots of a replay buffer that `classes` share; 1: without classes.

    `samples` and `starts`, uint8 (n, H, W, 3), set by `save`: the images of the slots that chains
    have moved, and the chains' starts. Raises UsageError for more chains than slots.
    """

    samples: Tensor
    starts: Tensor

    def __init__(self, context: Context, model: LoadedModel, classes: int) -> None:
        self.context, self.model, self.classes = context, model, classes
        buffer, chains = model.replay_buffer(classes), context.s.sgld_batch_size
        size = len(buffer.images) // classes
        if -(-chains // classes) > size:
            per_class = "" if classes == 1 else f", {size} of each class,"
            raise UsageError(
                f"--sgld_batch_size {chains} is more than the {size * classes} slots{per_class} "
                f"of the replay buffer: use {size * classes} at most"
            )
        self.slots = sampling.Slots(buffer)

    @property
    def drawn_images(self) -> Tensor:
        """Return the images (n, 3, H, W) of the slots that chains have moved."""
        return self.slots.buffer.images[self.slots.drawn]

    @property
    def labels(self) -> Tensor:
        """Return the classes (n,) of the slots that chains have moved."""
        return self.slots.buffer.classes(self.slots.drawn.nonzero().flatten())

    def by_label(self) -> list[Tensor]:
        """Return, for each class, the indices of its images in `drawn_images`."""
        return of_each_class(self.labels, self.classes)

    def by_prediction(self) -> list[Tensor]:
        """Return, for each class, the indices of images classified as it, most confident first."""
        return sampling.most_confident(self.model.network, self.drawn_images)

    def run(
        self,
        name: str,
        of_class: Callable[[], Sequence[Tensor]] | None = None,
        *,
        conditional: bool = False,
    ) -> None:
        """Run the rounds under a progress bar. Draw a grid every --print_every rounds and at the
        end: of the round's images or, with `of_class`, of `drawn_images`, a class a row. `of_class`
        returns each class's indices. The last grid also shows the classes' names.

        Raises NotFinite.
        """
        s, context, network = self.context.s, self.context, self.model.network
        files, last = context.files, s.n_sample_steps
        rounds = sampling.sampling_rounds(
            network,
            self.slots,
            self.model.chain(s.n_steps, self.model.start()),
            rounds=last,
            chains=s.sgld_batch_size,
            seed=s.seed,
            conditional=conditional,
        )
        with context.bar(last, f"{self.model.label}: {name}", "round") as bar:
            for number, images in enumerate(rounds, 1):
                bar.update()
                if number % s.print_every and number != last:
                    continue
                sampling.check_finite(images, number * s.n_steps)
                with torch.no_grad(), models.eval_mode(network):
                    log_px = float(network.log_px(images).mean())
                if not distributed.first():
                    continue
                bar.set_postfix({"log q(x)": f"{log_px:.4g}"})
                picture = f"{name}_{number * s.n_steps}"
                if of_class is None:
                    files.add(f"{picture}.png", figures.save_grid, images)
                    continue
                rows = class_rows(self.drawn_images, of_class(), COLUMNS)
                if number == last:
                    options: Any = {"columns": COLUMNS, "row_labels": self.model.class_names}
                    files.picture(picture, figures.draw_grids, {"": rows}, **options)
                else:  # a plain grid, which is quicker to make
                    files.add(f"{picture}.png", figures.save_grid, rows, COLUMNS)

    def save(self) -> dict[str, Any]:
        """Save `samples` and `starts`, and return their numbers."""
        s, drawn = self.context.s, self.slots.drawn
        steps = s.n_sample_steps * s.n_steps
        sampling.check_finite(self.drawn_images, steps)
        self.samples = sampling.to_uint8(self.drawn_images)
        self.starts = sampling.to_uint8(self.slots.starts[drawn])
        labels = None if self.classes == 1 else self.labels
        self.context.save_images(f"{s.eval}.npz", self.samples, self.starts, labels)
        n = len(self.samples)
        numbers = {"n": n, "steps": steps, "steps_per_sample": steps * s.sgld_batch_size / n}
        return numbers if labels is None else {**numbers, "guidance": self.model.guidance}

    def beside_training(self, training: data.EvaluationSet | None) -> dict[str, Any]:
        """Draw the samples beside their chains' starts and, with `training`, the nearest training
        image of their class. Return the numbers of `neighbours.compare_with_training`."""
        context, labels, numbers = self.context, self.labels, dict[str, Any]()
        sets = {"start": self.starts, "sample": self.samples}
        if training is not None:
            bank, bank_labels = training.split.images, training.split.labels
            if self.classes == 1:
                bank_labels = torch.zeros_like(bank_labels)
            try:
                numbers, index = neighbours.compare_with_training(
                    self.samples, self.starts, labels, bank, bank_labels
                )
                sets["nearest training image"] = bank[index]
            except ValueError as error:
                context.warn(f"samples are not compared with training images: {error}")
        if self.classes == 1:
            columns, names = STARTS_GRID, list[str]()
            grids = {name: data.to_float(x[: STARTS_GRID**2]) for name, x in sets.items()}
        else:
            columns, names = 3, self.model.class_names[: int(labels.max()) + 1]
            rows = of_each_class(labels, len(names))
            grids = {n: class_rows(data.to_float(x), rows, columns) for n, x in sets.items()}
        options: dict[str, Any] = {"columns": columns, "row_labels": names}
        context.files.picture(f"{context.s.eval}_starts", figures.draw_grids, grids, **options)
        return numbers

    def draw_trajectory(self) -> None:
        """Draw new chains at several steps, a chain a row; with classes, of the first COLUMNS."""
        s, network = self.context.s, self.model.network
        steps = min(s.n_sample_steps * s.n_steps, LONGEST_TRAJECTORY)
        lengths = sorted({i * steps // SNAPSHOTS for i in range(SNAPSHOTS + 1)})
        labels, n = None, COLUMNS
        if self.classes > 1:
            n = min(COLUMNS, self.classes)
            labels = torch.arange(n, device=self.context.device)
        chain = self.model.chain(steps, self.model.start())
        (frames,) = sampling.fresh_chains(
            network, chain, range(0, n, n), seen=lengths, seed=s.seed, labels=labels
        )
        self.context.files.picture(
            f"{s.eval}_trajectory",
            figures.draw_grids,
            {"SGLD steps": torch.stack(frames, 1).flatten(0, 1)},
            columns=len(lengths),
            row_labels=[] if labels is None else self.model.class_names[:n],
            column_labels=[str(step) for step in lengths],
        )


def of_each_class(labels: Tensor, classes: int) -> list[Tensor]:
    return [(labels == y).nonzero().flatten() for y in range(classes)]


def class_rows(images: Tensor, of_class: Sequence[Tensor], columns: int) -> Tensor:
    """Return the first `columns` images of each class, a class a row, where `of_class` has each
    class's indices. Missing images are black."""
    rows = [images[index[:columns]] for index in of_class]
    padded = [F.pad(row, (0, 0, 0, 0, 0, 0, 0, columns - len(row)), value=-1.0) for row in rows]
    return torch.cat(padded)
