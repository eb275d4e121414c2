"""What do samples of q(x|y) look like, and is each of its class?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.questions.base import ROUNDS, Question
from evaluation.questions.fid import load_judge, reading
from evaluation.questions.uncond_samples import check, show

if TYPE_CHECKING:
    from torch import Tensor

    from evaluation.context import Context
    from evaluation.loading import LoadedModel


def ask(context: Context, model: LoadedModel) -> dict[str, Any]:
    import torch

    from evaluation.questions import samples

    classes = model.num_classes
    slots = samples.Sampling(context, model, classes)
    judge, training = load_judge(context, model), samples.training_images(context, model)

    def draw(_: Tensor, path: Path, last: bool) -> None:
        """Return rows of one class each, from the slots that chains of that class have moved."""
        drawn = slots.begun.drawn
        images, labels = slots.buffer.images[drawn], slots.classes[drawn]
        rows = samples.padded_rows(images, labels, classes, samples.COLUMNS)
        samples.draw_class_rows(rows, path, classes, last)

    slots.run("cond_samples_direct", draw, conditional=True)
    labels = slots.classes[slots.begun.drawn]
    images, starts = slots.pixels()
    context.save_images("cond_samples.npz", images, starts, labels)
    judged = samples.beside_training(context, training, images, starts, labels)
    if judge is not None:
        judged["read_as_asked"], _ = reading(judge, {1: images, 0: starts}, labels, 1)
    counts = classified_samples(context, model)
    rows = torch.arange(min(samples.COLUMNS, classes), device=context.device)
    samples.save_trajectory(context, model, rows)
    numbers = samples.numbers_of(context, len(labels))
    return {**numbers, "classified_per_class": counts, **judged}


def classified_samples(context: Context, model: LoadedModel) -> list[int]:
    """Draw class-conditional samples the ancestors' way: unconditional ones, in the row of the
    class they look like. Return the number of samples of each class."""
    from evaluation import sampling
    from evaluation.questions import samples

    classes, counts = model.num_classes, list[int]()
    slots = samples.Sampling(context, model, classes)

    def draw(_: Tensor, path: Path, last: bool) -> None:
        images = slots.buffer.images[slots.begun.drawn]
        rows, found = sampling.most_confident(model.network, images, per_class=samples.COLUMNS)
        counts[:] = found.tolist()
        samples.draw_class_rows(rows, path, classes, last)

    slots.run("cond_samples_classified", draw)
    return counts


QUESTION = Question(
    "cond_samples",
    "SGLD samples of q(x|y), one class a row",
    ask,
    show,
    takes=(*ROUNDS, "fid_model"),
    several=False,
    defaults={"n_steps": 40},
    check=check,
)
