"""Choose the answers for a run's key numbers, in the strip at the top of the page."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean as mean
from typing import Any

from reports.page.markup import number, parsed
from reports.page.paper import Paper, canonical
from reports.page.questions import own_features
from reports.page.run import Answer, Run

Card = dict[str, Any]  # "value", "model" and further entries that the strip's template reads


def candidates(run: Run, name: str, key: str) -> Iterator[Card]:
    """Yield the answers about the run's own checkpoints that have this key, those about the most
    images first, and among as many the newest.

    Leave out answers about images that SGLD steps have refined: the page shows them further down.
    """
    for answer in sorted(run.answers[name], key=count_images, reverse=True):
        model = answer.of_run()
        if model and not model.refined and model.get(key) is not None:
            yield {"model": model, "value": model.get(key), "n": number(model.get("n"))}


def count_images(answer: Answer) -> float:
    """Count the images that the run's model was evaluated on; the OOD sets of an answer add up."""
    model = answer.of_run()
    if model is None:
        return 0
    sets = {str(r.get("ood_dataset")): r for r in model.rows("rows")}.values()
    n_in = max((number(r.get("n_in")) or 0 for r in sets), default=0)
    n_out = sum(number(r.get("n_out")) or 0 for r in sets)
    return max(number(model.get("n")) or 0, n_in + n_out)


def of_test_split(run: Run, name: str, key: str) -> Card | None:
    """Return the answer about the test split of the run's data."""
    for card in candidates(run, name, key):
        dataset = str(card["model"].get("dataset"))
        own = canonical(dataset) == canonical(run.settings.get("dataset", dataset))
        split = dataset.partition(":")[0]  # of folder_train:PATH, whose path may end in train, too
        if number(card["value"]) is not None and own and not split.endswith(("train", "valid")):
            return {**card, "dataset": dataset}
    return None


def last_epoch(run: Run) -> Card | None:
    """Return the test accuracy that training recorded last."""
    for row in reversed(run.rows):
        if (value := parsed(row.get("test_acc"))) is not None:
            return {"epoch": row.get("epoch"), "value": value, "model": None}
    return None


def ood(run: Run, paper: Paper) -> Card | None:
    """Return log q(x)'s mean AUROC over all sets of an answer, and the worst set."""
    for card in candidates(run, "OOD", "rows"):
        rows = card["model"].rows("rows")
        px = [row for row in rows if row.get("score_fn") == "px"]
        values = {str(row.get("ood_dataset")): number(row.get("auroc")) for row in px}
        auroc = {name: value for name, value in values.items() if value is not None}
        if auroc:
            in_set = str(card["model"].get("in_dataset"))
            pairs = [paper.auroc(in_set, name, "px") for name in auroc]
            published = None if None in pairs else mean(pair[0] for pair in pairs if pair)
            texts = details(in_set, auroc)
            value = mean(auroc.values())
            return {**card, "value": value, "details": texts, "published": published}
    return None


def details(in_set: str, auroc: dict[str, float]) -> list[str]:
    """Return texts about the sets of a mean AUROC and about the worst set."""
    worst = min(auroc, key=auroc.__getitem__)
    texts = [f"log q(x), {in_set} against {worst}"]
    if len(auroc) > 1:
        texts = [f"log q(x), {in_set}: mean of {len(auroc)} sets"]
        texts.append(f"worst: {worst} {auroc[worst]:.4f}")
    if auroc[worst] < 0.5:
        texts.append(f"below 0.5: {worst} has the higher log q(x)")
    return texts


def fid(run: Run) -> Card | None:
    """Return FID in Inception's features: FID in a classifier's own compares with no other."""
    for card in candidates(run, "fid", "fid"):
        if number(card["value"]) is not None and not own_features([card["model"]]):
            return card
    return None


def robust(run: Run) -> Card | None:
    """Return the row of an attack at the radius nearest to 8/255 (L-infinity), else to .5 (L2)."""
    for distance, goal in (("Linf", 8 / 255), ("L2", 0.5)):
        for card in candidates(run, "attack", "rows"):
            rows = [r for r in card["model"].rows("rows") if (number(r.get("eps")) or 0) > 0]
            rows = [r for r in rows if number(r.get("accuracy")) is not None]
            if rows and card["model"].get("distance") == distance:
                row = min(rows, key=lambda r: abs(r["eps"] - goal))
                return {**card, "distance": distance, "value": row["accuracy"], "eps": row["eps"]}
    return None
