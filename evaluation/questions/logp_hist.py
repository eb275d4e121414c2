"""Compare the distributions of a score over several data sets."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from evaluation.questions.base import SCORED, Context, LoadedModel, Numbers, Question, unscored
from evaluation.questions.ood import scorer
from runs.cli import UsageError
from runs.names import SCORES
from runs.screen import reversed_order

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def ask(context: Context, model: LoadedModel) -> Numbers:
    import numpy as np

    from evaluation.scores import detection

    (name,) = context.s.score_fn
    scores_of = scorer(context, model, [name])
    sets, skipped = sets_of(context, model)
    scores = [scores_of(dataset)[name] for dataset in sets]
    summary = dict[str, Numbers]()
    for dataset, x in zip(sets, scores, strict=True):
        summary[dataset.name] = {
            "title": dataset.title,
            "n": len(x),
            "mean": float(x.mean()),
            "std": float(x.std()),
            "quantiles": {f"{q:g}": float(np.quantile(x, q)) for q in QUANTILES},
            "auroc": None if dataset is sets[0] else detection(scores[0], x)["auroc"],
        }
        if model.flow and name == "px":
            summary[dataset.name]["bits_per_dim"] = model.flow.bits(float(x.mean()))
    return {"datasets": list(summary), "score_fn": name, "sets": summary, "skipped": skipped}


def sets_of(context: Context, model: LoadedModel) -> tuple[list[Any], list[dict[str, str]]]:
    """Return the sets, in-distribution first, and the sets left out with their reasons."""
    names = context.s.datasets
    if names is None:
        inside = context.evaluation_set(model)
        outside, skipped = context.ood_sets(model, inside)
        return [inside, *outside], skipped
    inside = context.images(names[0], model, "--datasets")
    available, skipped = context.available(names[1:], model, "--datasets")
    sets = [inside, *available.values()]
    if len({dataset.name for dataset in sets}) < len(sets):
        raise UsageError(f"--datasets {' '.join(names)} names a set twice: give each once")
    return sets, skipped


def show(context: Context, results: list[Numbers]) -> None:
    from evaluation import figures

    score, several = context.s.score_fn[0], len(results) > 1
    rows = [
        {"label": r["label"], "set": summary["title"], **summary, "ood_dataset": summary["title"]}
        | {"score_fn": score, **({"model": r["label"]} if several else {})}
        for r in results
        for summary in r["sets"].values()
    ]
    bits = ["bits_per_dim"] if any("bits_per_dim" in row for row in rows) else []
    context.table(rows, ["set", "n", "mean", *bits, "std", "auroc"])
    if message := reversed_order([row for row in rows if row["auroc"] is not None]):
        context.say(f"\n{message}")
    pictures = [
        {
            "label": r["label"],
            "sets": [
                (summary["title"], context.scores[f"{r['label']}/{name}/{score}"], summary["auroc"])
                for name, summary in r["sets"].items()
            ],
        }
        for r in results
    ]
    xlabel = SCORES[score]
    context.files.picture("logp_hist", figures.draw_histograms, pictures, xlabel=xlabel)


def idle(s: Namespace) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield from unscored(s)
    if s.datasets is not None:
        yield "datasets", ("dataset", "ood_dataset")


def check(s: Namespace) -> None:
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
    takes=(*SCORED, "datasets"),
    defaults={"ood_dataset": ["all"]},
    idle=idle,
    check=check,
)
