"""A run's key numbers: the strip at the top of the page, beside the paper's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from evaluation.report.answer import Answer, Model
from evaluation.report.markup import Html, decimals, number, percent, tag
from evaluation.report.paper import NETWORK, Paper, canonical
from evaluation.report.questions import radius
from evaluation.report.run import Run
from evaluation.report.sections import NOISY, own_features


def strip(run: Run, paper: Paper) -> Html | None:
    """Those numbers that exist, of this run's own checkpoints; None where there is none."""
    found = [make(run, paper) for make in (accuracy, ece, ood, fid, robust)]
    cards = [card for card in found if card is not None]
    return tag("ul", *cards, class_="strip") if cards else None


def card(name: object, value: str, detail: str, theirs: str | None) -> Html:
    paper = None if theirs is None else tag("span", f"paper ({NETWORK}): {theirs}", class_="paper")
    label, big = tag("span", name, class_="name"), tag("strong", value)
    return tag("li", label, big, tag("span", detail, class_="detail"), paper)


def own(run: Run, name: str, key: str) -> Iterator[tuple[Answer, Model, Any]]:
    """The run's own answers that have this key and are about images as they are, the newest first.

    Images may have been refined by SGLD steps before: those answers are further down the page.
    """
    for answer in run.answers.get(name, []):
        model = answer.of_run()
        steps = number(answer.part("settings").get("n_steps")) if name in NOISY else None
        if model is not None and not steps and answer.value(model, key) is not None:
            yield answer, model, answer.value(model, key)


def of_test_split(run: Run, name: str, key: str) -> tuple[float, str, str] | None:
    """(number, data set, detail) of the newest answer about the test split of the run's data."""
    for answer, model, value in own(run, name, key):
        dataset = str(answer.value(model, "dataset"))
        if number(value) is None or re.search(r"(train|valid)$", dataset):
            continue
        if canonical(dataset) == canonical(str(run.settings.get("dataset", dataset))):
            return float(value), dataset, f"{dataset}, {images(answer, model)}"
    return None


def images(answer: Answer, model: Model) -> str:
    n = number(answer.value(model, "n"))
    return "images unknown" if n is None else f"{n:,.0f} images"


def share(value: float | None) -> str | None:
    return None if value is None else percent(value, 1)


def accuracy(run: Run, paper: Paper) -> Html | None:
    found = of_test_split(run, "test_clf", "accuracy")
    if found is None:
        return last_epoch(run, paper)
    value, dataset, detail = found
    return card("Test accuracy", percent(value), detail, share(paper.accuracy(dataset)))


def last_epoch(run: Run, paper: Paper) -> Html | None:
    """What training recorded last, while nothing else was asked."""
    for row in reversed(run.rows):
        try:
            value = float(row.get("test_acc") or "")
        except ValueError:
            continue
        if number(value) is not None:
            epoch = row.get("epoch") or ""
            when = f"after epoch {epoch} of training" if epoch else "in training"
            theirs = share(paper.accuracy(str(run.settings.get("dataset"))))
            return card("Test accuracy", percent(value), when, theirs)
    return None


def ece(run: Run, paper: Paper) -> Html | None:
    found = of_test_split(run, "eval_ece", "ece")
    if found is None:
        return None
    value, dataset, detail = found
    return card("Calibration (ECE)", percent(value), detail, share(paper.ece(dataset)))


def ood(run: Run, paper: Paper) -> Html | None:
    """log q(x) against SVHN; against the first other set where SVHN was not asked about."""

    def rank(row: dict[str, Any]) -> bool:
        return canonical(str(row.get("ood_dataset"))) != "svhn"

    for answer, model, _ in own(run, "OOD", "rows"):
        rows = [r for r in answer.rows(model, "rows") if r.get("score_fn") == "px"]
        rows = [r for r in rows if number(r.get("auroc")) is not None]
        for row in sorted(rows, key=rank):
            out, ins = str(row.get("ood_dataset")), str(answer.value(model, "in_dataset"))
            known = paper.auroc(ins, out, "px")
            theirs = None if known is None else f"{known[0]:.2f}"
            detail = f"log q(x), {ins} against {out}"
            return card("OOD AUROC", decimals(row["auroc"], 4), detail, theirs)
    return None


def fid(run: Run, paper: Paper) -> Html | None:
    for answer, model, value in own(run, "fid", "fid"):
        if number(value) is None:
            continue
        own_network = own_features(answer, model)
        theirs = None if own_network else paper.generation("fid")
        features = "model" if own_network else str(answer.value(model, "features"))
        n = number(answer.value(model, "n"))
        detail = f"{features} features, " + ("" if n is None else f"{n:,.0f} samples")
        shown = None if theirs is None else f"{theirs:.1f}"
        return card("FID", decimals(value, 2), detail, shown)
    return None


def robust(run: Run, paper: Paper) -> Html | None:
    """At 8/255 (L-infinity) or .5 (L2), or the radius nearest to it."""
    found = list(own(run, "attack", "rows"))
    found.sort(key=lambda item: item[0].value(item[1], "distance") != "Linf")
    for answer, model, _ in found:
        rows = [r for r in answer.rows(model, "rows") if (number(r.get("eps")) or 0) > 0]
        rows = [r for r in rows if number(r.get("accuracy")) is not None]
        if not rows:
            continue
        distance = str(answer.value(model, "distance"))
        goal = 8 / 255 if distance == "Linf" else 0.5
        row = min(rows, key=lambda r: abs(r["eps"] - goal))
        norm = "L\N{INFINITY}" if distance == "Linf" else distance
        attack = {"pgd": "PGD", "autoattack": "AutoAttack"}
        kind = str(answer.value(model, "attack"))
        detail = f"{attack.get(kind, kind)}, {norm} {radius(row['eps'], distance)}"
        detail += f", {images(answer, model)}"
        return card("Robust accuracy", percent(row["accuracy"]), detail, None)
    return None
