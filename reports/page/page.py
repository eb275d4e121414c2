"""The whole page: heading, key numbers, objective, sections, settings."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reports.page import densities, generation, questions
from reports.page.headline import strip
from reports.page.markup import NONE, Html, code, fold, join, note, significant, table, tag
from reports.page.paper import EPOCHS, NETWORK, Paper, badge, network, paper_of, weight
from reports.page.run import Run
from reports.page.sections import plain, reading, section
from runs import terms
from training.flags import build_parser

HERE = Path(__file__).resolve().parent
SECTIONS = (
    *(generation.training, questions.classification, questions.calibration, densities.ood),
    *(densities.histograms, questions.robustness, generation.samples, generation.fid),
)
MINUS = "\N{MINUS SIGN}"


def page(run: Run) -> str:
    """The run as one HTML document that loads nothing: pictures, style and script are within it.

    Whatever the folder's files say is escaped, and the document's own policy lets no other script
    run and nothing load.
    """
    paper = paper_of(run)
    style = Html((HERE / "page.css").read_text(encoding="utf-8"))
    script = Html((HERE / "page.js").read_text(encoding="utf-8"))
    sections = [objective, *SECTIONS]
    if terms.has_chains(run.settings):  # its samples are what people look for first
        sections.remove(generation.samples)
        sections.insert(0, generation.samples)
    body = [*(make(run, paper) for make in sections), settings(run)]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy(script)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{run.name}: run report"),
        tag("style", style),
    )
    content = [heading(run, paper), tag("main", *body), footer(paper), tag("script", script)]
    document = tag("html", head, tag("body", *content), lang="en")
    return f"<!DOCTYPE html>\n{document}\n"


def policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    sources = f"img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return f"default-src 'none'; {sources}; base-uri 'none'; form-action 'none'"


def heading(run: Run, paper: Paper) -> Html:
    epochs = f"{run.epochs} epoch" + "s" * (run.epochs != 1) if run.rows else None
    norm = run.settings.get("norm")
    norm = None if norm is None or norm == "none" else f"{norm} norm"
    facts = [paper.method, run.settings.get("dataset"), network(run), norm, epochs]
    line = " \N{MIDDLE DOT} ".join(str(fact) for fact in facts if fact is not None)
    scale = badge(run)
    parts: list[Html | None] = [
        tag("p", "Joint energy-based classifier \N{MIDDLE DOT} run report", class_="eyebrow"),
        tag("h1", run.name),
        tag("p", line, class_="facts"),
    ]
    if scale is not None:
        text = (
            f"The papers train {NETWORK} for up to {EPOCHS} epochs on CIFAR-10 or CIFAR-100: their "
            "numbers say what to aim at, not what this run should have reached."
        )
        parts.append(tag("p", tag("b", scale, class_="badge"), " ", text, class_="scale"))
    parts += [note(text) for text in run.notes]
    return tag("header", *parts, strip(run, paper), contents(run))


def contents(run: Run) -> Html:
    names = {"samples": "Samples"} if terms.has_chains(run.settings) else {}
    names |= {"objective": "Objective", "training": "Training", "classification": "Accuracy"}
    names |= {"calibration": "Calibration", "ood": "OOD", "histograms": "Histograms"}
    names |= {"robustness": "Robustness", "samples": "Samples", "fid": "FID"}
    names |= {"settings": "Settings"}
    links = [tag("a", name, href=f"#{key}") for key, name in names.items()]
    return tag("nav", *links, aria_label="Sections")


def objective(run: Run, paper: Paper) -> Html:
    """The weighted sum that was minimised, one row a term."""
    if not run.settings:
        text = note("The settings of this run are unknown, and so is its objective.")
        return section("objective", "Objective", text)
    s = {name: plain(run.settings.get(name, NONE)) for name in OBJECTIVE}
    chains = sampler(run, s)
    queue = f"K = {s['contrast_k']}, T = {s['contrast_t']}, score {s['contrast_score']}"
    if s["contrast_style"] == "simclr":
        queue = f"negatives: the batch, T = {s['contrast_t']}, score {s['contrast_score']}"
    parts: list[object] = ["L = "]
    rows: list[list[object]] = []
    for term in terms.used(run.settings):
        weighed, formula = significant(weight(run, term.name)), term.formula.replace("-", MINUS)
        parts += [" + " if rows else "", f"{weighed} \N{MIDDLE DOT} [", formula, "]"]
        parts += [tag("sub", term.name)]
        how = f"{term.how}: {queue}" if term.queue else term.how
        if term.chains:
            how = f"{s[term.chains]} chains, {chains}"
        rows.append([code(f"--{term.name}"), formula, how, weighed])
    explained = (
        "What training minimised, per image: log q(y|x) = f(x)[y] "
        f"{MINUS} logsumexp f(x), log q(x) = logsumexp f(x) {MINUS} log Z, log q(x|y) = f(x)[y] "
        f"{MINUS} log Z(y), f(x) being the logits."
    )
    if run.settings.get("uncond"):
        explained += " But log q(x) of SGLD is a head of its own, e(x)."
    head = ("flag", "minimises", "how", "weight")
    whole = tag("p", *parts, class_="formula")
    listed = table(head, rows, text_columns=3)
    return section("objective", "Objective", whole, reading(explained), listed)


def sampler(run: Run, s: Mapping[str, str]) -> str:
    """The chains of the SGLD terms in words; `s`: the settings of OBJECTIVE as text."""
    parts = [f"{s['n_steps']} SGLD steps of {s['sgld_lr']}, noise {s['sgld_std']}"]
    told = run.settings
    if told.get("chain_start", "uniform") != "uniform":
        each = " of each class" if told["chain_start"] == "class_gaussian" else ""
        parts.append(f"from Gaussians{each}")
    if told.get("sgld_grad_clip") is not None:
        parts.append(f"gradients clamped to {plain(told['sgld_grad_clip'])}")
    if told.get("sgld_clamp"):
        parts.append("pixels clamped to [-1, 1]")
    if told.get("px_loss", "cd") == "bce":
        parts.append("told from data by binary cross-entropy on log q")
    return ", ".join(parts)


OBJECTIVE = (
    *("n_steps", "sgld_lr", "sgld_std", "sgld_batch_size", "batch_size"),
    *("contrast_k", "contrast_t", "contrast_score", "contrast_style"),
)


def settings(run: Run) -> Html:
    """Those that differ from the flags' defaults first, and where the run was made."""
    default = vars(build_parser().parse_args([]))
    changed, same = [], []
    for name, value in run.settings.items():
        if name in default and value == default[name]:
            same.append([name, code(plain(value))])
        else:
            known = code(plain(default[name])) if name in default else NONE
            changed.append([name, tag("b", code(plain(value))), known])
    where = [[name.replace("_", " "), plain(value)] for name, value in _flat(run.environment)]
    parts: list[Html] = []
    if changed or same:
        first = table(("setting", "value", "default"), changed, text_columns=3)
        rest = table(("setting", "value"), same, text_columns=2)
        groups = [tag("h3", "Changed from the default"), first, tag("h3", "At the default"), rest]
        parts.append(
            fold(f"{len(changed)} settings changed, {len(same)} at their default", *groups)
        )
    if where:
        found = table(("", "recorded when the run was started"), where, text_columns=2)
        parts.append(fold("Environment: versions, commit, device", found))
    if not parts:
        parts.append(note("No settings were recorded."))
    return section("settings", "Settings and environment", *parts)


def _flat(values: dict[str, Any]) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in values.items():
        pairs += value.items() if isinstance(value, dict) else [(name, value)]
    return pairs


def footer(paper: Paper) -> Html:
    links = [
        tag("span", f"{source['authors']}: ", tag("a", source["title"], href=_arxiv(source)),
            f", arXiv {source['arxiv']}. ")
        for source in paper.tables["sources"].values()
    ]  # fmt: skip
    return tag("footer", tag("p", "Papers: ", join(links)))


def _arxiv(source: dict[str, str]) -> str:
    return f"https://arxiv.org/abs/{source['arxiv']}"
