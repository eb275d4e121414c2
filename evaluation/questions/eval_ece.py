"""Measure the calibration of q(y|x), also after temperature scaling."""

from __future__ import annotations

from evaluation.questions.base import NOISY, Context, LoadedModel, Numbers, Question, unrefined
from runs.cli import Mistake

COLUMNS = ["dataset", "n", "accuracy", "ece", "nll", "brier", "temperature", "ece_temperature"]


def ask(context: Context, model: LoadedModel) -> Numbers:
    from evaluation.calibration import calibration
    from evaluation.classification import predictions

    dataset = context.labelled_set(model)
    logits, labels = predictions(model.network, context.batches(dataset, model))
    numbers = calibration(logits, labels)
    temperature = validation_temperature(context, model, dataset.name)
    scaled_ece = None if temperature is None else calibration(logits / temperature, labels)["ece"]
    scaling = {"temperature": temperature, "ece_temperature": scaled_ece}
    return {"dataset": dataset.name, **numbers, **scaling}


def validation_temperature(context: Context, model: LoadedModel, scored: str) -> float | None:
    """Fit a temperature to the validation images. Return None, with a warning, if there are none or
    if they determine no temperature. Warn if the set `scored` contains them."""
    import data
    from evaluation.calibration import fit_temperature
    from evaluation.classification import predictions

    try:
        name = data.split_name(context.training_set(model), "valid")
        valid = context.images(name, model, by_class=True)
    except Mistake as error:  # no validation images, other labels, or an unknown training set
        context.warn(f"no temperature scaling: {error}")
        return None
    if valid.num_classes != model.num_classes:  # None: an image has no label
        has = "no labels" if valid.num_classes is None else f"labels of {valid.num_classes} classes"
        context.warn(f"no temperature scaling: {valid.name} has {has}")
        return None
    temperature = fit_temperature(*predictions(model.network, context.batches(valid, model)))
    if temperature is None:
        context.warn(
            f"no temperature scaling: the {len(valid.split.labels):,} validation images determine "
            "no temperature (all are classified rightly, or no better than by chance)"
        )
    elif scored in (name, data.split_name(context.training_set(model), "train")):
        context.warn(
            f"ece_temperature is optimistic: the temperature is fitted to images of {scored} itself"
        )
    return temperature


def show(context: Context, results: list[Numbers]) -> None:
    from evaluation import figures

    context.table(results, COLUMNS)
    context.files.picture("eval_ece", figures.draw_reliability, results)


SUMMARY = "calibration: ECE, reliability diagram, Brier score, temperature"
QUESTION = Question("eval_ece", SUMMARY, ask, show, takes=NOISY, idle=unrefined)
