"""What do samples of q(x|y) look like, and is each of its class?"""

from __future__ import annotations

from pathlib import Path

from evaluation.questions.base import ROUNDS, Context, LoadedModel, Numbers, Question, Tensor
from evaluation.questions.fid import load_judge, reading
from evaluation.questions.uncond_samples import check, show


def ask(context: Context, model: LoadedModel) -> Numbers:
    import torch

    from evaluation.questions import samples

    classes = model.num_classes
    slots = samples.slots_of(context, model, classes)
    judge, training = load_judge(context, model), samples.training_images(context, model)
    of_slots = samples.classes_of(slots)

    def draw(_: Tensor, path: Path, last: bool) -> None:
        """One class a row: slots that chains of that class have moved."""
        images, labels = slots.buffer.images[slots.drawn], of_slots[slots.drawn]
        samples.draw_class_rows(samples.padded_rows(images, labels, classes), path, classes, last)

    samples.run(context, model, slots, "cond_samples_direct", draw, conditional=True)
    labels = of_slots[slots.drawn]
    numbers, images, starts = samples.saved(context, slots, labels)
    beside = samples.beside_training(context, training, images, starts, labels)
    numbers |= {"classified_per_class": classified_samples(context, model), **beside}
    if judge is not None:
        numbers["read_as_asked"], _ = reading(judge, {1: images, 0: starts}, labels, 1)
    rows = torch.arange(min(samples.COLUMNS, classes), device=context.device)
    samples.save_trajectory(context, model, rows)
    return numbers


def classified_samples(context: Context, model: LoadedModel) -> list[int]:
    """Draw class-conditional samples the ancestors' way: unconditional ones, in the row of the
    class they look like. Return the number of samples of each class."""
    from evaluation import sampling
    from evaluation.questions import samples

    classes, counts = model.num_classes, list[int]()
    slots = samples.slots_of(context, model, classes)

    def draw(_: Tensor, path: Path, last: bool) -> None:
        images = slots.buffer.images[slots.drawn]
        rows, found = sampling.most_confident(model.network, images, per_class=samples.COLUMNS)
        counts[:] = found.tolist()
        samples.draw_class_rows(rows, path, classes, last)

    samples.run(context, model, slots, "cond_samples_classified", draw)
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
