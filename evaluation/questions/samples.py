"""Draw samples of q(x) or q(x|y), and measure whether each is of its class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluation.questions.base import ROUNDS, Context, LoadedModel, Numbers, Question
from evaluation.questions.fid import assess, check_steps, load_judge
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
    options: Mapping[str, Any] = {"columns": COLUMNS, "row_labels": model.class_names}
    files.picture("cond_samples", figures.draw_grids, {"": rows}, **options)
    context.save_images("cond_samples.npz", pixels, None, labels)
    judgement = {} if judge is None else {"read_as_asked": assess(judge, pixels, None, labels)}
    return {"n": len(pixels), **judgement}


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
    rounds.run("cond_samples_direct", rounds.by_label, conditional=True)
    numbers = {**rounds.save(), **rounds.beside_training(training)}

    # As in JEM's and HDGE's code: unconditional samples, in the row of their predicted class.
    classified = Rounds(context, model, model.num_classes)
    classified.run("cond_samples_classified", classified.by_prediction)
    numbers["classified_per_class"] = [len(index) for index in classified.by_prediction()]
    if model.dataset.startswith(FOLDER):
        numbers["class_names"] = model.class_names
    if judge is not None:
        numbers["read_as_asked"] = assess(judge, rounds.samples, rounds.starts, rounds.labels)
    rounds.draw_trajectory()
    return numbers


def training_images(context: Context, model: LoadedModel) -> Any:
    """Return the model's training images. Without --dataset, warn and return None if that fails."""
    import data

    try:
        dataset = context.own_set(model, "leave it out")
        name, by_class = data.split_name(dataset, "train"), context.s.eval == "cond_samples"
        return context.images(name, model, by_class=by_class)
    except (data.DataError, UsageError) as error:
        if context.s.dataset is not None:
            raise
        context.warn(f"samples are not compared with training images: {error}")
        return None


def show(context: Context, results: list[Numbers]) -> None:
    (result,) = results
    context.say_values(result)
    titles = {"nearest": "distance to training", "variety": "variety"}
    titles["read_as_asked"] = "read as asked"
    rows = [{"": title, **result[key]} for key, title in titles.items() if result.get(key)]
    if rows:
        columns = ["", "samples", "starts", "data"]
        context.say("\n" + markdown(rows, columns, headers={"data": "training"}, digits=3))
    pictures = [name for name in context.files.files if name.endswith(".png")]
    context.say(f"pictures in {context.files.folder}: {', '.join(pictures)}")


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
