"""Write a run's page: order its sections, and collect the values of their templates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from reports.page import curves, headline, paper, questions
from reports.page.markup import NONE, document, plain
from reports.page.run import KEYS, Run
from reports.tables import DECLARED
from runs.names import FLOWS, network_title
from runs.style import radius

# Section, an id and the name of a template in sections/ -> name in the list of contents, title
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
    """Return the run as one HTML document; `defaults`: those of train_wrn.py's flags."""
    terms = paper.terms_of(run)
    has_chains = any(term.chains for term in terms)
    own_questions = {name: (name, name) for name in run.answers if name not in KEYS}
    first = {"samples": SECTIONS["samples"]} if has_chains else {}  # readers look for them first
    at_default = [k for k, value in run.settings.items() if k in defaults and value == defaults[k]]
    sections = first | SECTIONS | own_questions
    sections["settings"] = sections.pop("settings")  # the last section
    return document(
        "page.html",
        run=run,
        paper=paper.paper_of(run),
        sources=DECLARED["sources"],
        network=paper.NETWORK,
        epochs=paper.EPOCHS,
        trained=network_title(run.settings),
        flow=FLOWS.get(str(run.settings.get("arch"))),
        badge=paper.badge(run),
        sections=sections,
        terms=terms,
        s=defaultdict(lambda: NONE, {key: plain(value) for key, value in run.settings.items()}),
        has_chains=has_chains,
        curves=curves,
        headline=headline,
        questions=questions,
        radius=radius,
        defaults=defaults,
        at_default=at_default,
    )
