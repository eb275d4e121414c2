"""Measure near- and far-OOD detection with the lists, images and metrics of OpenOOD v1.5."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from evaluation.questions.base import SCORED, Context, LoadedModel, Numbers, Question, unscored
from evaluation.questions.ood import scorer
from runs.cli import UsageError
from runs.names import OPENOOD
from runs.screen import Row, markdown

COLUMNS = ("FPR@95", "AUROC", "AUPR_IN", "AUPR_OUT", "ACC")  # of OpenOOD's CSV, in per cent


def ask(context: Context, model: LoadedModel) -> Numbers:
    from data.openood import FAR, NEAR, PREFIX
    from evaluation.classification import classification

    benchmark = context.own_set(model, "leave it out")
    if benchmark not in NEAR:
        raise UsageError(
            f"--load_path {model.path} was trained on {benchmark}: OpenOOD's protocol is for "
            f"models of {' and '.join(NEAR)}"
        )
    groups = {"nearood": NEAR[benchmark], "farood": FAR}
    names = {name: f"{PREFIX}{benchmark}/{name}" for name in (*NEAR[benchmark], *FAR)}
    inside = context.images(f"{PREFIX}{benchmark}/{benchmark}", model)
    if not all(0 <= label < model.num_classes for label in inside.split.labels.tolist()):
        raise UsageError(f"--data_root: {inside.name} has labels that are no class of {benchmark}")
    sets, skipped = context.available([*names.values()], model, "--ood_dataset")
    context.warn_of_untrained_head(model)  # ACC reads it
    scores_of = scorer(context, model, list(dict.fromkeys(context.s.score_fn)))
    inside_scores = scores_of(inside, benchmark)
    outside = {name: scores_of(sets[full], name) for name, full in names.items() if full in sets}
    accuracy = classification(model.network, context.batches(inside, model))["accuracy"]
    rows = table(groups, inside_scores, outside, 100 * accuracy)
    lacking = {group: [n for n in members if n not in outside] for group, members in groups.items()}
    missing = {group: absent for group, absent in lacking.items() if absent}
    numbers = {"in_dataset": inside.name, "rows": rows, "missing": missing, "skipped": skipped}
    return {**numbers, "report": section(benchmark, rows, missing, context.s.sigma)}


def table(
    groups: dict[str, tuple[str, ...]], inside: Any, outside: dict[str, Any], accuracy: float
) -> list[Row]:
    """Return a row for each score and set, and a row of means for each group without missing sets.

    inside: score -> (n_in,); outside: set -> score -> (n_out,); numbers in per cent.
    """
    from evaluation.scores import openood_detection

    rows: list[Row] = []
    for (score, x), (group, members) in product(inside.items(), groups.items()):
        metrics = {
            name: openood_detection(x, outside[name][score]) for name in members if name in outside
        }
        if len(metrics) == len(members):
            metrics[group] = {
                key: fmean(row[key] for row in metrics.values()) for key in metrics[members[0]]
            }
        rows += [
            {"score_fn": score, "dataset": name, **numbers, "ACC": accuracy}
            for name, numbers in metrics.items()
        ]
    return rows


def section(name: str, rows: Sequence[Row], missing: dict[str, list[str]], sigma: float) -> Numbers:
    """Return the "report" of the answer: a section of the run's page, see `Question`."""
    head = ["score_fn", "dataset", *COLUMNS]
    text = [
        "In per cent, in OpenOOD's conventions: OOD is positive, but not for AUPR_IN.",
        f"Noise: --sigma {sigma:g}.",
        *(f"{group} has no mean: {', '.join(names)} missing." for group, names in missing.items()),
    ]
    cells = [[r["score_fn"], r["dataset"], *(f"{r[key]:.2f}" for key in COLUMNS)] for r in rows]
    return {"title": f"OpenOOD v1.5, {name}", "text": " ".join(text), "head": head, "rows": cells}


def show(context: Context, results: list[Numbers]) -> None:
    (result,) = results
    rows, report = result["rows"], result["report"]
    context.say(f"{report['title']}. {report['text']}\n")
    context.say(markdown(rows, report["head"], digits=2))
    for score in dict.fromkeys(row["score_fn"] for row in rows):
        lines = [",".join(report["head"][1:])]
        lines += [",".join(cells[1:]) for cells in report["rows"] if cells[0] == score]
        text = "\n".join(lines) + "\n"
        context.files.add(f"openood_{score}.csv", Path.write_text, text, encoding="utf-8")


QUESTION = Question(
    OPENOOD,
    "OpenOOD v1.5's near- and far-OOD sets by its metrics, for models of CIFAR",
    ask,
    show,
    takes=tuple(flag for flag in SCORED if flag not in ("ood_dataset", "max_images")),
    several=False,
    defaults={"sigma": 0.0, "ood_dataset": [OPENOOD]},
    idle=unscored,
)
