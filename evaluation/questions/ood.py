"""Measure OOD detection: separate in-distribution from other images by a score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from evaluation.questions.base import SCORED, Context, LoadedModel, Numbers, Question, unscored
from runs.cli import UsageError
from runs.screen import Row, markdown, reversed_order


def ask(context: Context, model: LoadedModel) -> Numbers:
    from evaluation.scores import detection

    names = list(dict.fromkeys(context.s.score_fn))
    scores_of = scorer(context, model, names)
    inside = context.evaluation_set(model)
    outside, skipped = context.ood_sets(model, inside)
    raw = {dataset.name: scores_of(dataset) for dataset in [inside, *outside]}
    rows = [
        {"ood_dataset": dataset.name, "score_fn": name}
        | detection(raw[inside.name][name], raw[dataset.name][name])
        for dataset in outside
        for name in names
    ]
    return {"in_dataset": inside.name, "rows": rows, "skipped": skipped}


def scorer(
    context: Context, model: LoadedModel, names: Sequence[str]
) -> Callable[..., dict[str, Any]]:
    """Return a function from an evaluation set to {score: float64 (N,)}. It also stores the
    values in `context.scores`, under its argument `name` or, by default, the set's name.

    Raises UsageError where knn has too few training images or pxsim no queue.
    """
    import data
    from evaluation.scores import feature_bank, scores

    if {"py", "pxy", "entropy"} & set(names):
        context.warn_of_untrained_head(model)
    bank, k = None, context.s.knn_k
    contrastive = model.contrastive() if "pxsim" in names else None
    if "knn" in names:
        try:
            train = context.images(data.split_name(context.training_set(model), "train"), model)
        except data.DataError as error:
            raise UsageError(f"--score_fn knn needs the training images: {error}") from None
        if k > (n := len(train.split.labels)):
            raise UsageError(
                f"--knn_k {k} is no neighbour among {n} training images: use 1 to {n}, or more "
                "images"
            )
        bank = feature_bank(model.network, context.batches(train, model))

    def scores_of(dataset: data.EvaluationSet, name: str | None = None) -> dict[str, Any]:
        batches = context.batches(dataset, model)
        by_score = scores(model.network, batches, names, contrastive=contrastive, bank=bank, k=k)
        prefix = f"{model.label}/{name or dataset.name}"
        context.scores |= {f"{prefix}/{score}": values for score, values in by_score.items()}
        return by_score

    return scores_of


def show(context: Context, results: list[Numbers]) -> None:
    several = len(results) > 1
    rows = [({"model": r["label"]} if several else {}) | row for r in results for row in r["rows"]]
    inside = {f"{r['label']}: {r['in_dataset']}": r["in_dataset"] for r in results}
    titles = set(inside.values()) if len(set(inside.values())) == 1 else inside
    parts = [f"In-distribution: {', '.join(titles)}", ood_table(rows), reversed_order(rows)]
    text = "\n\n".join(part for part in parts if part)
    context.say(text)
    context.files.add("OOD.md", Path.write_text, text + "\n", encoding="utf-8")


def ood_table(rows: Sequence[Row]) -> str:
    """Return a Markdown table of `rows`, with a column for the model where rows have a "model".

    Rows have ood_dataset, score_fn and the keys of `evaluation.scores.detection`. Rates are 0..1.
    """
    headers = {"model": "Model"} if any("model" in row for row in rows) else {}
    headers |= {"ood_dataset": "OOD set", "score_fn": "Score", "auroc": "AUROC"}
    headers |= {"fpr95": "FPR95", "aupr": "AUPR", "ratio": "in:out"}
    with_ratio = [{**row, "ratio": f"{row['n_in']}:{row['n_out']}"} for row in rows]
    return markdown(with_ratio, [*headers], headers=headers)


SUMMARY = "AUROC, FPR at 95 % TPR and AUPR against other data sets"
QUESTION = Question("OOD", SUMMARY, ask, show, takes=SCORED, idle=unscored)
