"""What the sections show of an answer: rows beside the papers' numbers, and pictures' captions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from reports.page.markup import number, plain
from reports.page.paper import Paper, canonical
from reports.page.run import Answer, Model, Run, items
from runs.names import SCORES

Pictures = list[tuple[Path, str]]  # each with its caption
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
    """Return a row for each model, OOD set and score; "theirs" is None where no paper has it."""
    rows = []
    for m in answer.models:
        several = {"model": m.label} if len(answer.models) > 1 else {}
        for row in m.rows("rows"):
            score, out = str(row.get("score_fn")), str(row.get("ood_dataset"))
            known = paper.auroc(str(m.get("in_dataset")), out, score) if m.own else None
            theirs = known and f"{known[0]:.2f} \N{PLUS-MINUS SIGN} {known[1]:.2f}"
            names = {"label": m.shown, "ood_dataset": out, "score_fn": score, **several}
            rows.append({**row, **names, "auroc": number(row.get("auroc")), "theirs": theirs})
    return rows


def in_datasets(answer: Answer) -> str:
    return ", ".join(sorted({str(m.get("in_dataset")) for m in answer.models}))


def distance_of(answer: Answer) -> str:
    return str((answer.of_run() or answer.first).get("distance"))


def radii(answer: Answer) -> list[tuple[float, list[Any]]]:
    """Return each radius of an attack and the models' accuracies at it."""
    found = [
        {number(row.get("eps")): row.get("accuracy") for row in model.rows("rows")}
        for model in answer.models
    ]
    known = sorted({at for rows in found for at in rows if at is not None})
    return [(at, [rows.get(at) for rows in found]) for at in known]


def while_training(run: Run) -> tuple[Pictures, Pictures]:
    """Return the last grid of each kind that training drew, and the first one of several."""
    found: dict[str, Pictures] = {}
    for path in sorted((run.folder / "samples").glob("*_*.png")):
        kind, _, epoch = path.stem.rpartition("_")
        after = f", after epoch {int(epoch)}" if re.fullmatch("[0-9]+", epoch) else ""
        found.setdefault(kind, []).append((path, GRIDS.get(kind, kind) + after))
    last = [paths[-1] for _, paths in sorted(found.items(), reverse=True)]
    return last, [paths[0] for paths in found.values() if len(paths) > 1]


def sampled(answer: Answer) -> Pictures:
    """Return samples beside training images first, and of each kind of picture the one with the
    most steps."""
    latest: dict[str, tuple[int, Path]] = {}
    for path in answer.pictures():
        found = re.search(r"samples_(?:([a-z]+)_?)?([0-9]*)\.png$", path.name)
        kind, steps = (found[1] or "", int(found[2] or 0)) if found else (path.stem, 0)
        if steps >= latest.get(kind, (-1, path))[0]:
            latest[kind] = (steps, path)
    shown = sorted(latest.items(), key=lambda item: item[0] != "starts")
    after = {kind: f", {steps:,} SGLD steps" if steps else "" for kind, (steps, _) in shown}
    return [(path, GRIDS.get(kind, GRIDS["uncond"]) + after[kind]) for kind, (_, path) in shown]


def features(model: Model) -> str:
    """Return 'inception', or 'model' with the classifier's file and folder."""
    kind, _, place = plain(model.get("features")).partition(" ")
    return f"{kind} {'/'.join(place.split('/')[-2:])}" if place else kind


def own_features(models: list[Model]) -> bool:
    """Return whether FID's features are a classifier's, of any model: no published number
    compares."""
    return any(str(model.get("features")).startswith("model") for model in models)


def all_rows(answer: Answer) -> list[dict[str, Any]]:
    return [row for model in answer.models for row in model.rows("rows")]


def class_names(told: dict[str, Any]) -> list[str]:
    """Return the names of a folder's classes; of another data set []."""
    return items(told.get("class_names"), str)


def own_table(told: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of the "report" that the answer to another question brings with it."""
    rows = [[plain(cell) for cell in row] for row in items(told.get("rows"), list)]
    return [plain(title) for title in items(told.get("head"), object)], rows
