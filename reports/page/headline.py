"""A run's key numbers, for the strip at the top of the page: which answer each is taken from."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean as mean
from typing import Any

from reports.page.markup import number, parsed
from reports.page.paper import Paper, canonical
from reports.page.questions import own_features
from reports.page.run import Answer, Run

Found = dict[str, Any]  # "value", "model", and what else a card shows


def own(run: Run, name: str, key: str) -> Iterator[Found]:
    """Yield the run's own answers that have this key and are about images as they are: those over
    most images first, and of as many the newest.

    Images may have been refined by SGLD steps before: those answers are further down the page.
    """
    for answer in sorted(run.answers[name], key=judged, reverse=True):
        model = answer.of_run()
        if model and not model.refined and model.get(key) is not None:
            yield {"model": model, "value": model.get(key), "n": number(model.get("n"))}


def judged(answer: Answer) -> float:
    """Count the images of the run's own part of the answer; an OOD answer's sets add up."""
    model = answer.of_run()
    if model is None:
        return 0
    sets = {str(r.get("ood_dataset")): r for r in model.rows("rows")}.values()
    ins = max((number(r.get("n_in")) or 0 for r in sets), default=0)
    outs = sum(number(r.get("n_out")) or 0 for r in sets)
    return max(number(model.get("n")) or 0, ins + outs)


def of_test_split(run: Run, name: str, key: str) -> Found | None:
    """Return the answer about the test split of the run's data."""
    for found in own(run, name, key):
        dataset = str(found["model"].get("dataset"))
        ours = canonical(dataset) == canonical(run.settings.get("dataset", dataset))
        if number(found["value"]) is not None and ours and not dataset.endswith(("train", "valid")):
            return {**found, "dataset": dataset}
    return None


def last_epoch(run: Run) -> Found | None:
    """Return the test accuracy that training recorded last."""
    for row in reversed(run.rows):
        if (value := parsed(row.get("test_acc"))) is not None:
            return {"epoch": row.get("epoch"), "value": value}
    return None


def ood(run: Run, paper: Paper) -> Found | None:
    """Return log q(x)'s mean AUROC over all sets of an answer, and the worst set."""
    for found in own(run, "OOD", "rows"):
        rows = found["model"].rows("rows")
        px = [row for row in rows if row.get("score_fn") == "px"]
        values = {str(row.get("ood_dataset")): number(row.get("auroc")) for row in px}
        auroc = {name: value for name, value in values.items() if value is not None}
        if auroc:
            inside = str(found["model"].get("in_dataset"))
            known = [paper.auroc(inside, name, "px") for name in auroc]
            theirs = None if None in known else mean(pair[0] for pair in known if pair)
            told = details(inside, auroc)
            return {"value": mean(auroc.values()), "details": told, "theirs": theirs}
    return None


def details(inside: str, auroc: dict[str, float]) -> list[str]:
    """Return which sets an AUROC is the mean of, and the worst one."""
    worst = min(auroc, key=auroc.__getitem__)
    told = [f"log q(x), {inside} against {worst}"]
    if len(auroc) > 1:
        told = [f"log q(x), {inside}: mean of {len(auroc)} sets"]
        told.append(f"worst: {worst} {auroc[worst]:.4f}")
    if auroc[worst] < 0.5:
        told.append(f"below 0.5: {worst} has the higher log q(x)")
    return told


def fid(run: Run) -> Found | None:
    """Return FID in Inception's features: one in a classifier's own compares with nothing."""
    for found in own(run, "fid", "fid"):
        if number(found["value"]) is not None and not own_features([found["model"]]):
            return found
    return None


def robust(run: Run) -> Found | None:
    """Return the row of an attack at 8/255 (L-infinity) or .5 (L2), or the radius nearest to it."""
    for distance, goal in (("Linf", 8 / 255), ("L2", 0.5)):
        for found in own(run, "attack", "rows"):
            rows = [r for r in found["model"].rows("rows") if (number(r.get("eps")) or 0) > 0]
            rows = [r for r in rows if number(r.get("accuracy")) is not None]
            if rows and found["model"].get("distance") == distance:
                row = min(rows, key=lambda r: abs(r["eps"] - goal))
                return {**found, "distance": distance, "value": row["accuracy"], "eps": row["eps"]}
    return None
