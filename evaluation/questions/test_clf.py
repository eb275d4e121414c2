"""Measure accuracy, top-5 accuracy and negative log-likelihood of q(y|x)."""

from __future__ import annotations

import math

from evaluation import NotFinite
from evaluation.questions.base import NOISY, Context, LoadedModel, Numbers, Question, unrefined


def ask(context: Context, model: LoadedModel) -> Numbers:
    from evaluation.classification import classification

    dataset = context.labelled_set(model)
    numbers = classification(model.network, context.batches(dataset, model))
    if not math.isfinite(numbers["nll"]):
        raise NotFinite("the logits are not finite: use another")
    top5 = {"top5": None} if model.num_classes <= 5 else {}  # it would always be 1
    return {"dataset": dataset.name, **numbers, **top5, "n_steps": context.s.n_steps}


def show(context: Context, results: list[Numbers]) -> None:
    top5 = ["top5"] if any(result["top5"] is not None for result in results) else []
    context.table(results, ["dataset", "n", "accuracy", *top5, "nll"])


SUMMARY = "accuracy, top-5 accuracy, negative log-likelihood"
QUESTION = Question("test_clf", SUMMARY, ask, show, takes=NOISY, idle=unrefined)
