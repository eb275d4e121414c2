"""What do samples of q(x) look like?"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.questions.base import ROUNDS, Question
from runs.cli import UsageError
from runs.screen import markdown

if TYPE_CHECKING:
    from torch import Tensor

    from evaluation.context import Context
    from evaluation.loading import LoadedModel


def ask(context: Context, model: LoadedModel) -> dict[str, Any]:
    from evaluation import plots, sampling
    from evaluation.questions import samples

    slots = samples.Sampling(context, model, 1)
    training = samples.training_images(context, model)

    def draw(images: Tensor, path: Path, last: bool) -> None:
        plots.save_grid(images, path.with_suffix(".png"))

    slots.run("uncond_samples", draw)
    sampling.check_finite(
        slots.buffer.images[slots.begun.drawn], context.s.n_sample_steps * context.s.n_steps
    )
    images, starts = slots.pixels()
    context.save_images("uncond_samples.npz", images, starts)
    samples.save_trajectory(context, model, None)
    beside = samples.beside_training(context, training, images, starts, None)
    return {**samples.numbers_of(context, len(images)), **beside}


def show(context: Context, results: list[dict[str, Any]]) -> None:
    context.say_values(results[0])
    if table := samples_table(results[0]):
        context.say(f"\n{table}")


def samples_table(result: Mapping[str, Any]) -> str | None:
    """Return the numbers of samples, of their chains' starts and of training images, a line each;
    None if there are none."""
    titles = {"nearest": "distance to training", "variety": "variety"}
    titles["read_as_asked"] = "read as asked"
    rows = [{"": title, **result[key]} for key, title in titles.items() if result.get(key)]
    columns = ["", "samples", "starts", "data"]
    return markdown(rows, columns, headers={"data": "training"}, digits=3) if rows else None


def check(s: Namespace, given: set[str]) -> None:
    if s.n_steps == 0:
        raise UsageError(f"--n_steps 0 samples nothing: give {s.eval} 1 or more")


QUESTION = Question(
    "uncond_samples",
    "SGLD samples of q(x)",
    ask,
    show,
    takes=ROUNDS,
    several=False,
    defaults={"n_steps": 40},
    check=check,
)
