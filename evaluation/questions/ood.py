"""How well do scores tell the model's own images from others?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from evaluation.questions.base import NOISY, SCORED, Question, without_refinement
from runs.cli import UsageError
from runs.screen import Row, markdown, reversed_order

if TYPE_CHECKING:
    import numpy as np

    import data
    from evaluation.context import Context
    from evaluation.loading import LoadedModel


def ask(context: Context, model: LoadedModel) -> dict[str, Any]:
    from evaluation.scores import detection

    names = list(dict.fromkeys(context.s.score_fn))
    scores_of = scorer(context, model, names)
    inside = context.asked_set(model)
    outside, skipped = context.ood_sets(model, inside)
    scores_in, rows, raw = scores_of(inside), list[dict[str, Any]](), dict[str, Any]()
    for found in outside:
        scores_out = scores_of(found)
        raw |= {f"{model.label}/{found.name}/{name}": scores_out[name] for name in names}
        for name in names:
            which = {"ood_dataset": found.name, "score_fn": name}
            rows.append({**which, **detection(scores_in[name], scores_out[name])})
    raw |= {f"{model.label}/{inside.name}/{name}": scores_in[name] for name in names}
    return {"in_dataset": inside.name, "rows": rows, "skipped": skipped, "_raw": raw}


def scorer(
    context: Context, model: LoadedModel, names: Sequence[str]
) -> Callable[[data.EvaluationSet], dict[str, np.ndarray]]:
    """Return set -> {score: float64 (N,)}. Raises UsageError before any image is looked at, for
    what knn and pxsim need and do not have."""
    import data
    from evaluation.scores import check_neighbour, feature_bank, scores

    bank, k = None, context.s.knn_k
    contrastive = model.contrastive() if "pxsim" in names else None
    if "knn" in names:
        try:
            train = context.images(data.split_name(context.known(model), "train"), model)
        except data.DataError as error:
            raise UsageError(f"--score_fn knn needs the training images: {error}") from None
        check_neighbour(k, len(train.split.labels))
        bank = feature_bank(model.network, context.batches(train, model))

    def scores_of(found: data.EvaluationSet) -> dict[str, np.ndarray]:
        batches = context.batches(found, model)
        return scores(model.network, batches, names, contrastive=contrastive, bank=bank, k=k)

    return scores_of


def show(context: Context, results: list[dict[str, Any]]) -> None:
    several = len(results) > 1
    rows = [({"model": r["label"]} if several else {}) | row for r in results for row in r["rows"]]
    inside = {f"{r['label']}: {r['in_dataset']}": r["in_dataset"] for r in results}
    same = len(set(inside.values())) == 1
    title = ", ".join(set(inside.values()) if same else inside)
    parts = [f"In-distribution: {title}", ood_table(rows), reversed_order(rows)]
    text = "\n\n".join(part for part in parts if part)
    context.say(text)
    context.files.add("OOD.md", lambda path: path.write_text(text + "\n", encoding="utf-8"))
    context.save_scores(results)


def ood_table(rows: Sequence[Row]) -> str:
    """Return a line for each OOD set and score and, where rows have a "model", for each model.

    Rows have ood_dataset, score_fn and the keys of `evaluation.scores.detection`. Rates are 0..1.
    """
    headers = {"model": "Model"} if any("model" in row for row in rows) else {}
    headers |= {"ood_dataset": "OOD set", "score_fn": "Score", "auroc": "AUROC"}
    headers |= {"fpr95": "FPR95", "aupr": "AUPR", "ratio": "in:out"}
    shown = [{**row, "ratio": f"{row['n_in']}:{row['n_out']}"} for row in rows]
    return markdown(shown, [*headers], headers=headers)


QUESTION = Question(
    "OOD",
    "AUROC, FPR at 95 % TPR and AUPR against other data sets",
    ask,
    show,
    takes=(*NOISY, *SCORED),
    idle=without_refinement,
)
