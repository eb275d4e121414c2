"""How is a score distributed over several data sets?"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from evaluation.questions.base import NOISY, SCORED, Question, Rule, without_refinement
from evaluation.questions.ood import scorer
from runs.cli import UsageError
from runs.names import SCORES
from runs.screen import reversed_order

if TYPE_CHECKING:
    import data
    from evaluation.context import Context
    from evaluation.loading import LoadedModel

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def ask(context: Context, model: LoadedModel) -> dict[str, Any]:
    import numpy as np

    from evaluation.scores import detection

    (name,) = context.s.score_fn
    scores_of = scorer(context, model, [name])
    sets, skipped = sets_of(context, model)
    raw: dict[str, np.ndarray] = {}
    summary: dict[str, Any] = {}
    for found in sets:
        raw[found.name] = values = scores_of(found)[name]
        auroc = detection(raw[sets[0].name], values)["auroc"]
        summary[found.name] = {
            "title": found.title,
            "n": len(values),
            "mean": float(values.mean()),
            "std": float(values.std()),
            "quantiles": {f"{q:g}": float(np.quantile(values, q)) for q in QUANTILES},
            "auroc": None if found is sets[0] else auroc,
        }
    picture = {
        "label": model.label,
        "in": (sets[0].title, raw[sets[0].name]),
        "out": [(f.title, raw[f.name], summary[f.name]["auroc"]) for f in sets[1:]],
    }
    numbers = {"datasets": list(summary), "score_fn": name, "sets": summary, "skipped": skipped}
    keys = {f"{model.label}/{each}/{name}": values for each, values in raw.items()}
    return {**numbers, "_raw": keys, "_picture": picture}


def sets_of(
    context: Context, model: LoadedModel
) -> tuple[list[data.EvaluationSet], list[dict[str, str]]]:
    """Return the in-distribution set and the others, and what `all` names and cannot be had."""
    named = context.s.datasets
    if named is None:
        inside = context.asked_set(model)
        outside, skipped = context.ood_sets(model, inside)
        return [inside, *outside], skipped
    sets = [context.images(each, model, "--datasets") for each in named]
    if len({found.name for found in sets}) < len(sets):
        raise UsageError(f"--datasets {' '.join(named)} names a set twice: give each once")
    return sets, []


def show(context: Context, results: list[dict[str, Any]]) -> None:
    from evaluation import figures

    score, front = context.s.score_fn[0], ["model"] if len(results) > 1 else []
    rows = [
        {"label": r["label"], "model": r["label"], "set": each["title"], **each}
        for r in results
        for each in r["sets"].values()
    ]
    context.table(rows, ["set", "n", "mean", "std", "auroc"], several=bool(front))
    outside = [
        {key: row[key] for key in [*front, "auroc"]} | {"ood_dataset": row["set"]}
        for row in rows
        if row["auroc"] is not None
    ]
    if told := reversed_order([{**row, "score_fn": score} for row in outside]):
        context.say(f"\n{told}")
    pictures = [r["_picture"] for r in results]
    context.files.picture(
        "logp_hist",
        lambda path: figures.save_histograms(path, pictures, xlabel=SCORES[score]),
    )
    context.save_scores(results)


def idle(s: Namespace) -> Iterator[Rule]:
    yield from without_refinement(s)
    if s.datasets is not None:
        yield "datasets", ("dataset", "ood_dataset")


def check(s: Namespace, given: set[str]) -> None:
    if len(s.score_fn) > 1:
        raise UsageError(f"--score_fn {' '.join(s.score_fn)}: logp_hist draws one score, give one")
    if s.datasets is not None and len(s.datasets) < 2:
        raise UsageError(
            f"--datasets {s.datasets[0]} leaves nothing to compare with: give two or more"
        )


QUESTION = Question(
    "logp_hist",
    "histograms of a score over several data sets (HDGE Figure 1)",
    ask,
    show,
    takes=(*NOISY, *SCORED, "datasets"),
    defaults={"ood_dataset": ["all"]},
    idle=idle,
    check=check,
)
