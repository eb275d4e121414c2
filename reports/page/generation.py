"""The sections on curves, samples and their quality."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from reports.page import markup
from reports.page.answer import Answer, items
from reports.page.curves import panels
from reports.page.markup import (
    NONE,
    Html,
    count,
    decimals,
    fold,
    note,
    number,
    table,
    tag,
)
from reports.page.paper import NETWORK, Paper
from reports.page.run import Run
from reports.page.sections import answered, labels, own_features, plain, reading, section
from runs.terms import has_chains

KINDS = {
    "uncond": "Chains that climb log q(x)",
    "cond": "Chains that climb f(x)[y], one class a row",
    "contrast": "Chains that climb log q(x|y) as the contrastive term has it",
    "direct": "Chains that climb f(x)[y], one class a row",
    "classified": "Samples of q(x), classified: the most confident of each class, a class a row",
    "starts": "Where chains began, their samples, and the nearest training images",
    "trajectory": "Chains from their start on the left to the last step on the right, one a row",
}


def training(run: Run, paper: Paper) -> Html:
    text = (
        "One point an epoch, counted from 0. Contrastive losses stay near log(K + 1) and move "
        "little; log q of data and of samples should stay close together: a gap that keeps growing "
        "is a divergence."
    )
    drawn = panels(run.rows)
    if drawn is None and (run.folder / "curves.png").exists():
        drawn = markup.picture(run.folder / "curves.png", "Training curves")
    body: list[Html] = [drawn or note("No epoch is recorded yet.")]
    if run.rows:
        head = list(run.rows[0])
        cells = [[_short(row[name]) for name in head] for row in run.rows]
        body.append(fold("progress.csv as a table", table(head, cells)))
    return section("training", "Training", reading(text), *body)


def _short(text: str) -> str:
    try:
        return f"{float(text):.6g}"
    except ValueError:
        return text


def samples(run: Run, paper: Paper) -> Html:
    parts: list[Html] = []
    fresh = () if has_chains(run.settings) else ("--fresh_samples",)
    parts.append(tag("h3", "Class-conditional: q(x|y)"))
    parts.append(answered(run, "cond_samples", _show_samples, *fresh))
    parts.append(tag("h3", "Unconditional: q(x)"))
    parts.append(answered(run, "uncond_samples", _show_samples, *fresh))
    grids = run.samples()
    if grids:
        parts.append(tag("h3", "While training"))
        text = (
            "As many SGLD steps as a training step takes, from the replay buffer where the run has "
            "one, else from noise."
        )
        parts.append(tag("p", text, class_="small"))
        shown = [_grid(paths[-1], kind) for kind, paths in sorted(grids.items(), reverse=True)]
        parts.append(tag("div", *shown, class_="grids"))
        earlier = [_grid(paths[0], kind) for kind, paths in grids.items() if len(paths) > 1]
        if earlier:
            parts.append(fold("At the first plot", tag("div", *earlier, class_="grids")))
    text = (
        "Images drawn by following the gradient of the log density, with noise. Cross-entropy and "
        "HDGE alone do not learn to sample: their chains climb to textures. SGLD terms do that."
    )
    return section("samples", "Samples", reading(text), *parts)


def _grid(path: Path, kind: str) -> Html:
    epoch = re.search(r"_([0-9]+)$", path.stem)
    caption = KINDS.get(kind, kind) + (f", after epoch {int(epoch[1])}" if epoch else "")
    return markup.picture(path, caption, caption, pixels=True)


def _show_samples(answer: Answer) -> list[Html]:
    """Samples beside training images first, and of each kind of picture the one with the most
    steps."""
    latest: dict[str, tuple[int, Path]] = {}
    for path in answer.pictures():
        found = re.search(r"samples_(?:([a-z]+)_?)?([0-9]*)\.png$", path.name)
        kind, steps = (found[1] or "", int(found[2] or 0)) if found else (path.stem, 0)
        if steps >= latest.get(kind, (-1, path))[0]:
            latest[kind] = (steps, path)
    shown = []
    for kind, (steps, path) in sorted(latest.items(), key=lambda item: item[0] != "starts"):
        caption = KINDS.get(kind, KINDS["uncond"]) + (f", {steps:,} SGLD steps" if steps else "")
        shown.append(markup.picture(path, caption, caption))
    first = answer.models[0].values if answer.models else {}
    facts = f"{count(first.get('n'))} images, {count(first.get('steps'))} SGLD steps in all."
    classified = items(first.get("classified_per_class"), int)
    if classified:
        facts += f" Classified as class 0, 1, ...: {', '.join(map(count, classified))} of them."
    grids = tag("div", *shown, class_="grids")
    return [grids, *_beside(first), tag("p", facts, class_="small")]


def _beside(values: dict[str, Any]) -> list[Html]:
    """The table of samples beside their starts and training images, where it was measured."""
    titles = {
        "nearest": "distance to the nearest training image",
        "variety": "distance between samples of a class",
        "read_as_asked": "read as the class that was asked for",
    }
    rows = []
    for key, title in titles.items():
        if isinstance(found := values.get(key), dict):
            rows.append(
                [title, *(decimals(found.get(name), 3) for name in ("samples", "starts", "data"))]
            )
    head = ("L2 of pixels in [0, 1], and shares", "samples", "their starts", "training images")
    return [table(head, rows)] if rows else []


def _compared(rows: list[dict[str, Any]]) -> Html:
    keys = {"fid": "FID", "precision": "precision", "recall": "recall"}
    if any(number(row.get("read_as_asked")) is not None for row in rows):
        keys["read_as_asked"] = "read as asked"
    cells = [
        [plain(row.get("images")), count(row.get("steps")), count(row.get("n"))]
        + [decimals(row.get(key), 2 if key == "fid" else 3) for key in keys]
        for row in rows
    ]
    return table(("images", "SGLD steps", "n", *keys.values()), cells)


def fid(run: Run, paper: Paper) -> Html:
    def show(answer: Answer) -> list[Html]:
        r, parts = answer.record, list[Html]()
        head = ("model", "FID", "Inception Score", "samples", "sampling", "features", "reference")
        rows = []
        for name, m in zip(labels(answer), answer.models, strict=True):
            keys = ("inception_score_mean", "inception_score_std", "n_reference", "reference")
            mean, std, n_reference, reference = (answer.value(m, key) for key in keys)
            score = f"{decimals(mean, 2)} \N{PLUS-MINUS SIGN} {decimals(std, 2)}"
            against = f"{plain(reference)} ({count(n_reference)})"
            kind, _, place = plain(answer.value(m, "features")).partition(" ")
            features = kind + " " + "/".join(place.split("/")[-2:]) if place else kind
            how = [plain(answer.value(m, "sampling")), features]
            n = count(answer.value(m, "n"))
            rows.append([name, decimals(answer.value(m, "fid"), 2), score, n, *how, against])
        ours = any(own_features(answer, m) for m in answer.models)
        theirs = [paper.generation("fid"), paper.generation("is")]
        if any(theirs) and not ours:
            shown = [NONE if x is None else f"{x:.2f}" for x in theirs]
            rows.append([f"paper ({NETWORK})", *shown, NONE, "", "inception", ""])
        parts.append(table(head, rows))
        if compared := [row for m in answer.models for row in answer.rows(m, "rows")]:
            text = (
                "Below, each set is compared with one half of the reference images, by as many "
                "images. The other half shows how near samples could come."
            )
            parts.append(tag("p", text, class_="small"))
            parts.append(_compared(compared))
        if ours:
            text = (
                "The features are a classifier's own, not Inception's: no published FID compares."
            )
            parts.append(note(text))
        if r.get("full_rank") is False:
            text = (
                "Fewer samples than features: the covariance has not full rank, FID is biased up."
            )
            parts.append(note(text))
        sha = r.get("features_sha256")
        if sha:
            parts.append(tag("p", "Features' sha256: ", markup.code(sha), class_="small hash"))
        text = "Some of the samples that were judged"
        grids = []
        for path in answer.pictures():
            if "lengths" in path.stem:
                title = "FID, precision and recall over the length of the chains"
                grids.append(markup.picture(path, title, title))
            else:
                grids.append(markup.picture(path, text, text, pixels=True))
        return [*parts, tag("div", *grids, class_="grids") if grids else Html("")]

    text = (
        "FID: the Frechet distance between the features of "
        "samples and of real images; 0 is best. It falls with the number of samples: compare only "
        "equal numbers, references and features. Inception Score: higher is better; 1 is the "
        "worst."
    )
    body = answered(run, "fid", show)
    return section("fid", "FID and Inception Score", reading(text), body)
