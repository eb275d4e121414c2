"""The whole page: what each section's template is given."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from reports.page import curves, headline, paper, questions
from reports.page.markup import HERE, NONE, code, document, plain
from reports.page.run import KEYS, Run
from runs import terms

# A section's template in sections/ and its id -> its name in the list of contents, its title
SECTIONS = {
    "objective": ("Objective", "Objective"),
    "training": ("Training", "Training"),
    "classification": ("Accuracy", "Classification"),
    "calibration": ("Calibration", "Calibration"),
    "ood": ("OOD", "Out-of-distribution detection"),
    "histograms": ("Histograms", "Histograms of the score"),
    "robustness": ("Robustness", "Robustness"),
    "samples": ("Samples", "Samples"),
    "fid": ("FID", "FID and Inception Score"),
    "settings": ("Settings", "Settings and environment"),
}


def page(run: Run, defaults: Mapping[str, Any]) -> str:
    """Return the run as one HTML document; `defaults`: of the flags of train_wrn.py."""
    theirs, has_chains = paper.paper_of(run), terms.has_chains(run.settings)
    others = {name: (name, name) for name in run.answers if name not in KEYS}
    first = {"samples": SECTIONS["samples"]} if has_chains else {}  # what people look for
    sections = first | SECTIONS | others
    sections["settings"] = sections.pop("settings")
    return document(
        "page.html",
        script=(HERE / "page.js").read_text(encoding="utf-8"),
        run=run,
        paper=theirs,
        network=paper.NETWORK,
        epochs=paper.EPOCHS,
        facts=facts(run, theirs),
        badge=paper.badge(run),
        sections=sections,
        terms=terms.used(run.settings),
        s=defaultdict(lambda: NONE, {key: plain(value) for key, value in run.settings.items()}),
        has_chains=has_chains,
        curves=curves,
        headline=headline,
        questions=questions,
        **settings(run, defaults),
    )


def settings(run: Run, defaults: Mapping[str, Any]) -> dict[str, list[list[object]]]:
    """Return rows: settings that differ from their default, those that do not, the environment."""
    changed: list[list[object]] = []
    same: list[list[object]] = []
    for name, value in run.settings.items():
        if name in defaults and value == defaults[name]:
            same.append([name, code(value)])
        else:
            known = code(defaults[name]) if name in defaults else NONE
            changed.append([name, Markup("<b>{}</b>").format(code(value)), known])
    pairs: list[tuple[str, Any]] = []
    for name, value in run.environment.items():
        pairs += value.items() if isinstance(value, dict) else [(name, value)]
    environment: list[list[object]] = [[k.replace("_", " "), plain(v)] for k, v in pairs]
    return {"changed": changed, "same": same, "environment": environment}


def facts(run: Run, theirs: paper.Paper) -> list[Any]:
    """What the run is, in the line below its name."""
    norm = run.settings.get("norm")
    norm = None if norm in (None, "none") else f"{norm} norm"
    epochs = paper.epochs(run) if run.rows else None
    found = [theirs.method, run.settings.get("dataset"), paper.network(run), norm, epochs]
    return [fact for fact in found if fact is not None]
