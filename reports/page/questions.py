"""Prepare answers for the sections: rows beside the papers' numbers, pictures with captions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from reports.page.markup import number, plain
from reports.page.paper import Paper, canonical
from reports.page.run import Answer, Model, Run, items
from runs.names import SCORES

Pictures = list[tuple[Path, str]]  # path, caption
NORM = {"Linf": "L\N{INFINITY}", "L2": "L2"}
GRIDS = {  # kind of picture -> its caption
    "uncond": "Chains that climb log q(x)",
    "cond": "Class-conditional chains, one class a row",
    "contrast": "Chains that climb log q(x|y) as the contrastive term has it",
    "direct": "Class-conditional chains, one class a row",
    "classified": "Samples of q(x), classified: the most confident of each class, a class a row",
    "starts": "Where chains began, their samples, and the nearest training images",
    "trajectory": "Chains from their start on the left to the last step on the right, one a row",
}


def own_set(run: Run) -> str:
    return canonical(str(run.settings.get("dataset", "cifar10")))


def score_name(score: object) -> str:
    return f"{score}: {SCORES[score]}" if isinstance(score, str) and score in SCORES else str(score)


def ood_rows(answer: Answer, paper: Paper) -> list[dict[str, Any]]:
    """Return a row for each model, OOD set and score; "published": the paper's AUROC, or None."""
    rows = []
    for m in answer.models:
        model = {"model": m.label} if len(answer.models) > 1 else {}
        for row in m.rows("rows"):
            score, ood_set = str(row.get("score_fn")), str(row.get("ood_dataset"))
            auroc = paper.auroc(str(m.get("in_dataset")), ood_set, score) if m.own else None
            published = auroc and f"{auroc[0]:.2f} \N{PLUS-MINUS SIGN} {auroc[1]:.2f}"
            names = {"label": m.shown, "ood_dataset": ood_set, "score_fn": score, **model}
            numbers = {"auroc": number(row.get("auroc")), "published": published}
            rows.append({**row, **names, **numbers})
    return rows


def in_datasets(answer: Answer) -> str:
    return ", ".join(sorted({str(m.get("in_dataset")) for m in answer.models}))


def radii(answer: Answer) -> list[tuple[float, list[Any]]]:
    """Return each radius of an attack and the models' accuracies at it."""
    accuracies = [
        {number(row.get("eps")): row.get("accuracy") for row in model.rows("rows")}
        for model in answer.models
    ]
    radii = sorted({eps for of_model in accuracies for eps in of_model if eps is not None})
    return [(eps, [of_model.get(eps) for of_model in accuracies]) for eps in radii]


def while_training(run: Run) -> tuple[Pictures, Pictures]:
    """Return the last grid of each kind that training drew, and the first of kinds with several."""
    grids: dict[str, Pictures] = {}
    for path in sorted((run.folder / "samples").glob("*_*.png")):
        kind, _, epoch = path.stem.rpartition("_")
        after = f", after epoch {int(epoch)}" if re.fullmatch("[0-9]+", epoch) else ""
        grids.setdefault(kind, []).append((path, GRIDS.get(kind, kind) + after))
    last = [of_kind[-1] for _, of_kind in sorted(grids.items(), reverse=True)]
    return last, [of_kind[0] for of_kind in grids.values() if len(of_kind) > 1]


def sampled(answer: Answer) -> Pictures:
    """Return the picture of each kind after the most SGLD steps. The first is "starts", which has
    samples beside their starts and training images."""
    latest: dict[str, tuple[int, Path]] = {}
    for path in answer.pictures():
        # "-1" is in the names of an earlier answer; a flow's picture has neither kind nor steps.
        match = re.search(r"samples(?:-[0-9]+)?_(?:([a-z]+)_?)?([0-9]*)\.png$", path.name)
        kind, steps = (match[1] or "uncond", int(match[2] or 0)) if match else (path.stem, 0)
        if steps >= latest.get(kind, (-1, path))[0]:
            latest[kind] = (steps, path)
    kinds = sorted(latest.items(), key=lambda item: item[0] != "starts")
    several_rounds = answer.first.get("steps_per_sample") != answer.first.get("steps")
    unit = "SGLD steps in all rounds" if several_rounds else "SGLD steps"
    after = {kind: f", {steps:,} {unit}" if steps else "" for kind, (steps, _) in kinds}
    return [(path, GRIDS.get(kind, "Drawn by the flow") + after[kind]) for kind, (_, path) in kinds]


def features(model: Model) -> str:
    """Return 'inception', or 'model' with the classifier's file and folder."""
    kind, _, path = plain(model.get("features")).partition(" ")
    return f"{kind} {'/'.join(path.split('/')[-2:])}" if path else kind


def own_features(models: list[Model]) -> bool:
    """Return whether any FID is in a classifier's features: no published number compares."""
    return any(str(model.get("features")).startswith("model") for model in models)


def class_names(values: dict[str, Any]) -> list[str]:
    """Return the class names in an answer about a data set folder:PATH, else []."""
    return items(values.get("class_names"), str)


def report_table(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of the "report" in the answer to a question that the page lacks."""
    rows = [[plain(cell) for cell in row] for row in items(report.get("rows"), list)]
    return [plain(title) for title in items(report.get("head"), object)], rows
