"""A run's key numbers, for the strip at the top of the page: which answer each is taken from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from statistics import fmean as mean
from typing import Any

from reports.page.markup import number
from reports.page.paper import Paper, canonical
from reports.page.questions import own_features
from reports.page.run import NOISY, Answer, Run
from runs.names import TITLES

# OpenOOD's sets (arXiv 2306.09301), for models trained on CIFAR
NEAR = {"cifar10": ("cifar100", "tinyimagenet"), "cifar100": ("cifar10", "tinyimagenet")}
FAR = ("mnist", "svhn", "textures", "places365")
Found = dict[str, Any]  # "value", "answer" and "model", and what else a card shows


def own(run: Run, name: str, key: str) -> Iterator[Found]:
    """Yield the run's own answers that have this key and are about images as they are: those over
    most images first, and of as many the newest.

    Images may have been refined by SGLD steps before: those answers are further down the page.
    """
    for answer in sorted(run.answers[name], key=judged, reverse=True):
        model = answer.of_run()
        steps = number(answer.part("settings").get("n_steps")) if name in NOISY else None
        if not steps and answer.value(model, key) is not None:
            n = number(answer.value(model, "n"))
            yield {"answer": answer, "model": model, "value": answer.value(model, key), "n": n}


def judged(answer: Answer) -> float:
    """Count the images of the run's own part of the answer; an OOD answer's sets add up."""
    model = answer.of_run()
    if model is None:
        return 0
    sets = {str(r.get("ood_dataset")): r for r in answer.rows(model, "rows")}
    ins = [number(r.get("n_in")) or 0 for r in sets.values()]
    outs = [number(r.get("n_out")) or 0 for r in sets.values()]
    return max(number(answer.value(model, "n")) or 0, max(ins, default=0) + sum(outs))


def of_test_split(run: Run, name: str, key: str) -> Found | None:
    """Return the answer about the test split of the run's data."""
    for found in own(run, name, key):
        dataset = str(found["answer"].value(found["model"], "dataset"))
        ours = canonical(dataset) == canonical(run.settings.get("dataset", dataset))
        train = re.search(r"(train|valid)$", dataset)
        if number(found["value"]) is not None and ours and not train:
            return {**found, "dataset": dataset}
    return None


def last_epoch(run: Run) -> Found | None:
    """Return the test accuracy that training recorded last."""
    for row in reversed(run.rows):
        try:
            value = number(float(row.get("test_acc") or ""))
        except ValueError:
            continue
        if value is not None:
            return {"value": value, "epoch": row.get("epoch")}
    return None


def ood(run: Run, paper: Paper) -> Found | None:
    """Return log q(x)'s mean AUROC over all sets of an answer, and the worst set."""
    for found in own(run, "OOD", "rows"):
        answer, model = found["answer"], found["model"]
        rows = [r for r in answer.rows(model, "rows") if r.get("score_fn") == "px"]
        values = {str(r.get("ood_dataset")): number(r.get("auroc")) for r in rows}
        auroc = {name: value for name, value in values.items() if value is not None}
        if auroc:
            inside, worst = (
                str(answer.value(model, "in_dataset")),
                min(auroc, key=auroc.__getitem__),
            )
            known = [paper.auroc(inside, name, "px") for name in auroc]
            theirs = [pair[0] for pair in known if pair is not None]
            shown = mean(theirs) if len(theirs) == len(auroc) else None
            numbers = {"value": mean(auroc.values()), "auroc": auroc, "worst": worst}
            return {**numbers, "dataset": inside, "theirs": shown}
    return None


def details(found: Found) -> list[str]:
    """Return which sets an AUROC is the mean of, the worst one, and OpenOOD's near and far."""
    inside, auroc, worst = found["dataset"], found["auroc"], found["worst"]
    told = [f"log q(x), {inside} against {worst}"]
    if len(auroc) > 1:
        told = [f"log q(x), {inside}: mean of {len(auroc)} sets"]
        told.append(f"worst: {worst} {auroc[worst]:.4f}")
    asked = {canonical(name): value for name, value in auroc.items() if len(auroc) > 1}
    near = NEAR.get(canonical(inside), ())
    for kind, sets in (("near", near), ("far", FAR if near else ())):
        used = [name for name in sets if name in asked]
        left = ", ".join(TITLES[name] for name in sets if name not in asked)
        if used:
            titles = ", ".join(TITLES[name] for name in used) + f"; without {left}" * bool(left)
            told.append(f"{kind}: {mean(asked[name] for name in used):.4f} ({titles})")
    if auroc[worst] < 0.5:
        told.append(f"below 0.5: {worst} has the higher log q(x)")
    return told


def fid(run: Run) -> Found | None:
    """Return FID in Inception's features: one in a classifier's own compares with nothing."""
    for found in own(run, "fid", "fid"):
        if number(found["value"]) is not None and not own_features(found["answer"], found["model"]):
            return found
    return None


def robust(run: Run) -> Found | None:
    """Return the row of an attack at 8/255 (L-infinity) or .5 (L2), or the radius nearest to it."""
    distances = {"Linf": 8 / 255}
    for found in sorted(own(run, "attack", "rows"), key=lambda f: distance(f) != "Linf"):
        rows = [r for r in found["answer"].rows(found["model"], "rows") if number(r.get("eps"))]
        rows = [r for r in rows if r["eps"] > 0 and number(r.get("accuracy")) is not None]
        goal = distances.get(distance(found), 0.5)
        if rows:
            row = min(rows, key=lambda r: abs(r["eps"] - goal))
            return {
                **found,
                "value": row["accuracy"],
                "eps": row["eps"],
                "distance": distance(found),
            }
    return None


def distance(found: Found) -> str:
    return str(found["answer"].value(found["model"], "distance"))
