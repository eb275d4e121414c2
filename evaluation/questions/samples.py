"""What do samples of q(x), or of q(x|y), look like, and is each of its class?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluation.questions.base import ROUNDS, Context, LoadedModel, Numbers, Question
from evaluation.questions.fid import check_steps, load_judge, reading
from runs.cli import UsageError
from runs.names import FOLDER
from runs.screen import markdown


def ask_flow(context: Context, model: LoadedModel, flow: Any) -> Numbers:
    """Draw --sgld_batch_size images by the flow's inverse."""
    from evaluation import figures
    from evaluation.questions.rounds import COLUMNS, class_rows, of_each_class
    from evaluation.sampling import flow_samples, to_uint8

    s, files, judge = context.s, context.files, load_judge(context, model)
    images, labels = flow_samples(flow, s.sgld_batch_size, seed=s.seed)
    pixels = to_uint8(images)
    if labels is None or s.eval == "uncond_samples":
        files.add("uncond_samples.png", figures.save_grid, images)
        context.save_images("uncond_samples.npz", pixels, None)
        return {"n": len(pixels)}
    rows = class_rows(images, of_each_class(labels, model.num_classes), COLUMNS)
    more: Mapping[str, Any] = {"columns": COLUMNS, "row_labels": model.class_names}
    files.picture("cond_samples", figures.draw_grids, {"": rows}, **more)
    context.save_images("cond_samples.npz", pixels, None, labels)
    read = {} if judge is None else {"read_as_asked": reading(judge, pixels, None, labels)}
    return {"n": len(pixels), **read}


def ask_unconditional(context: Context, model: LoadedModel) -> Numbers:
    from evaluation.questions.rounds import Rounds

    if model.flow is not None:
        return ask_flow(context, model, model.flow)
    rounds, training = Rounds(context, model, 1), training_images(context, model)
    rounds.run("uncond_samples")
    numbers = rounds.save()
    rounds.draw_trajectory()
    return {**numbers, **rounds.beside_training(training)}


def ask_conditional(context: Context, model: LoadedModel) -> Numbers:
    from evaluation.questions.rounds import Rounds

    if model.flow is not None:
        return ask_flow(context, model, model.flow)
    rounds = Rounds(context, model, model.num_classes)
    judge, training = load_judge(context, model), training_images(context, model)
    rounds.run("cond_samples_direct", rounds.as_asked, conditional=True)
    numbers = {**rounds.save(), **rounds.beside_training(training)}

    # The ancestors' way: unconditional samples, in the row of the class that they look like.
    looking = Rounds(context, model, model.num_classes)
    looking.run("cond_samples_classified", looking.as_read)
    numbers["classified_per_class"] = [len(index) for index in looking.as_read()]
    if model.dataset.startswith(FOLDER):
        numbers["class_names"] = model.class_names
    if judge is not None:
        numbers["read_as_asked"] = reading(judge, rounds.samples, rounds.starts, rounds.labels)
    rounds.draw_trajectory()
    return numbers


def training_images(context: Context, model: LoadedModel) -> Any:
    """Return the images that the model was trained on; None, with a warning, if that fails."""
    import data

    try:
        own = context.own_set(model, "leave it out")
        return context.images(data.split_name(own, "train"), model)
    except (data.DataError, UsageError) as error:
        if context.s.dataset is not None:
            raise
        context.warn(f"samples are not compared with training images: {error}")
        return None


def show(context: Context, results: list[Numbers]) -> None:
    context.say_values(results[0])
    if table := samples_table(results[0]):
        context.say(f"\n{table}")
    pictures = [name for name in context.files.files if name.endswith(".png")]
    context.say(f"pictures in {context.files.folder}: {', '.join(pictures)}")


def samples_table(result: Mapping[str, Any]) -> str | None:
    """Return the numbers of samples, of their chains' starts and of training images, a line each;
    None if there are none."""
    titles = {"nearest": "distance to training", "variety": "variety"}
    titles["read_as_asked"] = "read as asked"
    rows = [{"": title, **result[key]} for key, title in titles.items() if result.get(key)]
    columns = ["", "samples", "starts", "data"]
    return markdown(rows, columns, headers={"data": "training"}, digits=3) if rows else None


SHARED: Mapping[str, Any] = {"several": False, "defaults": {"n_steps": 40}, "check": check_steps}
UNCONDITIONAL = Question(
    "uncond_samples", "SGLD samples of q(x)", ask_unconditional, show, takes=ROUNDS, **SHARED
)
CONDITIONAL = Question(
    "cond_samples",
    "SGLD samples of q(x|y), one class a row",
    ask_conditional,
    show,
    takes=(*ROUNDS, "guidance", "fid_model"),
    **SHARED,
)
