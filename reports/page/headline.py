"""A run's key numbers: the strip at the top of the page, beside the paper's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from statistics import fmean as mean
from typing import Any

from reports.page.answer import Answer, Model
from reports.page.markup import Html, count, decimals, join, number, percent, tag
from reports.page.paper import NETWORK, Paper, canonical
from reports.page.questions import radius
from reports.page.run import Run
from reports.page.sections import NOISY, own_features

# OpenOOD's sets (arXiv 2306.09301), for models trained on CIFAR
NEAR = {"cifar10": ("cifar100", "tinyimagenet"), "cifar100": ("cifar10", "tinyimagenet")}
FAR = ("mnist", "svhn", "textures", "places365")
TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "tinyimagenet": "TinyImageNet",
          "mnist": "MNIST", "svhn": "SVHN", "textures": "Textures",
          "places365": "Places365"}  # fmt: skip


def strip(run: Run, paper: Paper) -> Html | None:
    """Those numbers that exist, of this run's own checkpoints; None where there is none."""
    found = [make(run, paper) for make in (accuracy, ece, ood, fid, robust)]
    cards = [card for card in found if card is not None]
    return tag("ul", *cards, class_="strip") if cards else None


def card(name: object, value: str, detail: object, theirs: str | None) -> Html:
    paper = None if theirs is None else tag("span", f"paper ({NETWORK}): {theirs}", class_="paper")
    label, big = tag("span", name, class_="name"), tag("strong", value)
    return tag("li", label, big, tag("span", detail, class_="detail"), paper)


def own(run: Run, name: str, key: str) -> Iterator[tuple[Answer, Model, Any]]:
    """The run's own answers that have this key and are about images as they are: those over most
    images first, and of as many the newest.

    Images may have been refined by SGLD steps before: those answers are further down the page.
    """
    for answer in sorted(run.answers.get(name, []), key=judged, reverse=True):
        model = answer.of_run()
        steps = number(answer.part("settings").get("n_steps")) if name in NOISY else None
        if model is not None and not steps and answer.value(model, key) is not None:
            yield answer, model, answer.value(model, key)


def judged(answer: Answer) -> float:
    """The images that the run's own part of the answer is about; an OOD answer's sets add up."""
    model = answer.of_run()
    if model is None:
        return 0
    sets = {str(r.get("ood_dataset")): r for r in answer.rows(model, "rows")}
    ins = [number(r.get("n_in")) or 0 for r in sets.values()]
    outs = [number(r.get("n_out")) or 0 for r in sets.values()]
    return max(number(answer.value(model, "n")) or 0, max(ins, default=0) + sum(outs))


def of_test_split(run: Run, name: str, key: str) -> tuple[float, str, str] | None:
    """(number, data set, detail) of the answer about the test split of the run's data."""
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
    """log q(x): the mean over all sets of an answer, the worst one, and OpenOOD's near and far."""
    for answer, model, _ in own(run, "OOD", "rows"):
        rows = [r for r in answer.rows(model, "rows") if r.get("score_fn") == "px"]
        found = {str(r.get("ood_dataset")): number(r.get("auroc")) for r in rows}
        auroc = {name: value for name, value in found.items() if value is not None}
        if not auroc:
            continue
        ins, worst = str(answer.value(model, "in_dataset")), min(auroc, key=lambda k: auroc[k])
        details = [f"log q(x), {ins} against {worst}"]
        if len(auroc) > 1:
            details = [f"log q(x), {ins}: mean of {count(len(auroc))} sets"]
            details.append(f"worst: {worst} {decimals(auroc[worst], 4)}")
            details += near_and_far(ins, auroc)
        if auroc[worst] < 0.5:
            details.append(f"below 0.5: {worst} has the higher log q(x)")
        known = [paper.auroc(ins, name, "px") for name in auroc]
        theirs = [pair[0] for pair in known if pair is not None]
        shown = f"{mean(theirs):.2f}" if len(theirs) == len(auroc) else None
        return card("OOD AUROC", decimals(mean(auroc.values()), 4), lines(details), shown)
    return None


def near_and_far(in_dataset: str, auroc: dict[str, float]) -> list[str]:
    """OpenOOD's two means, each with its sets and those that were not asked; [] for other models
    than CIFAR's."""
    base, told = canonical(in_dataset), []
    asked = {canonical(name): value for name, value in auroc.items()}
    for kind, sets in (("near", NEAR.get(base, ())), ("far", FAR if base in NEAR else ())):
        used = [name for name in sets if name in asked]
        left = [TITLES[name] for name in sets if name not in asked]
        if used:
            value = decimals(mean(asked[name] for name in used), 4)
            without = f"; without {', '.join(left)}" if left else ""
            told.append(f"{kind}: {value} ({', '.join(TITLES[n] for n in used)}{without})")
    return told


def lines(texts: Iterable[str]) -> Html:
    return join(texts, tag("br"))


def fid(run: Run, paper: Paper) -> Html | None:
    """In Inception's features: a distance in a classifier's own compares with nothing."""
    for answer, model, value in own(run, "fid", "fid"):
        if number(value) is None or own_features(answer, model):
            continue
        theirs = paper.generation("fid")
        n = number(answer.value(model, "n"))
        detail = f"{answer.value(model, 'features')} features, "
        detail += "" if n is None else f"{n:,.0f} samples"
        return card("FID", decimals(value, 2), detail, None if theirs is None else f"{theirs:.1f}")
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
