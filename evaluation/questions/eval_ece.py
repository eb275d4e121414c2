"""Does q(y|x) mean what it says?"""

from __future__ import annotations

from evaluation.questions.base import NOISY, Context, LoadedModel, Numbers, Question, unrefined
from runs.cli import Mistake

COLUMNS = ["dataset", "n", "accuracy", "ece", "nll", "brier", "temperature", "ece_temperature"]


def ask(context: Context, model: LoadedModel) -> Numbers:
    from evaluation.calibration import calibration
    from evaluation.classification import predictions

    found = context.labelled_set(model)
    logits, labels = predictions(model.network, context.batches(found, model))
    numbers, temperature = calibration(logits, labels), validation_temperature(context, model)
    scaled = None if temperature is None else calibration(logits / temperature, labels)["ece"]
    scaling = {"temperature": temperature, "ece_temperature": scaled}
    return {"dataset": found.name, **numbers, **scaling}


def validation_temperature(context: Context, model: LoadedModel) -> float | None:
    """Fit a temperature to the validation images. Return None, with a warning, without any images
    and where they determine none."""
    import data
    from evaluation.calibration import fit_temperature
    from evaluation.classification import predictions

    try:
        found = context.images(data.split_name(context.known(model), "valid"), model)
    except Mistake as error:  # no such images, or a set that is not known
        context.warn(f"no temperature scaling: {error}")
        return None
    temperature = fit_temperature(*predictions(model.network, context.batches(found, model)))
    if temperature is None:
        context.warn(
            f"no temperature scaling: the {len(found.split.labels):,} validation images determine "
            "no temperature (all are classified rightly, or no better than by chance)"
        )
    return temperature


def show(context: Context, results: list[Numbers]) -> None:
    from evaluation import figures

    context.table(results, COLUMNS)
    context.files.picture("eval_ece", figures.draw_reliability, results)


SUMMARY = "calibration: ECE, reliability diagram, Brier score, temperature"
QUESTION = Question("eval_ece", SUMMARY, ask, show, takes=NOISY, idle=unrefined)
