"""How many images are classified rightly?"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from evaluation import NotFinite
from evaluation.questions.base import NOISY, Question, without_refinement

if TYPE_CHECKING:
    from evaluation.context import Context
    from evaluation.loading import LoadedModel


def ask(context: Context, model: LoadedModel) -> dict[str, Any]:
    from evaluation.classification import classification

    found = context.labelled_set(model)
    numbers = classification(model.network, context.batches(found, model))
    if not math.isfinite(numbers["nll"]):
        raise NotFinite("the logits are not finite: use another")
    return {"dataset": found.name, **numbers, "n_steps": context.s.n_steps}


def show(context: Context, results: list[dict[str, Any]]) -> None:
    context.table(results, ["dataset", "n", "accuracy", "top5", "nll"])


QUESTION = Question(
    "test_clf",
    "accuracy, top-5 accuracy, negative log-likelihood",
    ask,
    show,
    takes=NOISY,
    idle=without_refinement,
)
