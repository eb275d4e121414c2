"""The whole page: what each section's template is given."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from reports.page import curves, headline, paper, questions
from reports.page.markup import NONE, document, plain
from reports.page.run import KEYS, Run
from reports.tables import DECLARED
from runs import terms
from runs.names import network_title
from runs.style import radius

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
    same = [k for k, value in run.settings.items() if k in defaults and value == defaults[k]]
    sections = first | SECTIONS | others
    sections["settings"] = sections.pop("settings")
    return document(
        "page.html",
        run=run,
        paper=theirs,
        sources=DECLARED["sources"],
        network=paper.NETWORK,
        epochs=paper.EPOCHS,
        trained=network_title(run.settings),
        badge=paper.badge(run),
        sections=sections,
        terms=terms.used(run.settings),
        s=defaultdict(lambda: NONE, {key: plain(value) for key, value in run.settings.items()}),
        has_chains=has_chains,
        curves=curves,
        headline=headline,
        questions=questions,
        radius=radius,
        defaults=defaults,
        same=same,
    )
