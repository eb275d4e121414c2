"""What do samples of q(x) look like?"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation.questions.base import ROUNDS, Context, LoadedModel, Numbers, Question, Tensor
from runs.cli import UsageError
from runs.screen import markdown


def ask(context: Context, model: LoadedModel) -> Numbers:
    from evaluation import plots
    from evaluation.questions import samples

    slots = samples.slots_of(context, model, 1)
    training = samples.training_images(context, model)

    def draw(images: Tensor, path: Path, last: bool) -> None:
        plots.save_grid(images, path.with_suffix(".png"))

    samples.run(context, model, slots, "uncond_samples", draw)
    numbers, images, starts = samples.saved(context, slots)
    samples.save_trajectory(context, model)
    return {**numbers, **samples.beside_training(context, training, images, starts)}


def show(context: Context, results: list[Numbers]) -> None:
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


def check(s: Namespace) -> None:
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
