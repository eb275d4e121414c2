"""RESULTS.md and the HTML page: findings, verdicts and all tables, from the records alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from reports.page.markup import document
from reports.tables import formats
from reports.tables.claims import (
    CONTRADICTED,
    HOLDS,
    UNDECIDED,
    Verdict,
    divergences,
    gradient_rows,
    verdicts,
)
from reports.tables.formats import Part
from reports.tables.pictures import copies_of, save_picture
from reports.tables.records import Record
from reports.tables.table import OTHER, Row, Table
from runs.terms import has_chains

SUBJECT = "The tables and figures of HDGE (arXiv 2007.09070), the paper's number beside ours."
READING = (
    "Ours are the mean and sample standard deviation over seeds, with the number of seeds in "
    "brackets. 'paper' is the paper's own setting; rows at another scale say so, and their numbers "
    "tell which method is ahead at that scale, not what the paper's setting reaches. 'not run': "
    "nobody has trained the row yet; 'quoted': a published number of a method that this project "
    "does not train; 'not asked': trained, but without this evaluation; 'no data': the data set "
    "was not there; 'other features': FID and Inception Score of this row are in another column. A "
    "diverged run counts and gives no number.",
    "Made by `python scripts/tables.py write` from the records in `results/`; not by hand.",
)
RULE = (
    "A claim holds, or is contradicted, where the means over seeds differ in its direction, or "
    "against it, by Welch's t-test at 5 %, two-sided. Every claim is judged by itself: of twenty "
    "where there is no difference, one would seem to have one. The findings are those furthest "
    "beyond the spread of the seeds."
)
UNJUDGED = "Undecided, because not both sides were run at this scale"
HEAD = ["Claim", "In", "Scale", "First", "Second"]
GRADIENTS = "Gradients of the terms, before their weights"
GRADIENT_HEAD = [
    "Scale",
    "Experiment",
    "Term",
    "Norm of its gradient",
    "Cosine with cross-entropy's",
]
Shown = tuple[Table, Sequence[tuple[str, Path]]]  # and its pictures


def page_of(shown: Sequence[Shown], records: Mapping[str, Mapping[str, Record]]) -> list[Part]:
    """Return the page's parts. records: scale -> experiment -> record."""
    judged: list[Verdict] = []
    unjudged, gradients = [], []
    for scale, found in records.items():
        of_scale, left = verdicts(scale, found)
        judged += of_scale
        unjudged += [Part("text", f"{UNJUDGED} ({scale}): {'; '.join(left)}.")] if left else []
        gradients += [[scale, *row] for row in gradient_rows(found)]
    groups = {name: [v for v in judged if v.group == name] for name in (HOLDS, CONTRADICTED)}
    parts = [Part("heading", "Results"), Part("text", SUBJECT)]
    parts += [Part("list", items=findings(judged))]
    parts += [Part("heading", "Which claims hold", level=2), Part("text", RULE)]
    for name, group in groups.items():
        parts.append(Part("heading", f"{name.capitalize()}: {len(group)}", level=3))
        parts += [grid(HEAD, [verdict.cells for verdict in group])] if group else []
    rows = [[*v.cells, v.text] for v in judged if v.group == UNDECIDED]
    within = [grid([*HEAD, "At this scale"], rows)] if rows else []
    parts.append(Part("fold", f"{UNDECIDED.capitalize()}: {len(rows)}", [*within, *unjudged]))
    parts += [Part("heading", "How to read the tables", level=2)]
    parts += [Part("text", text) for text in READING]
    parts += [Part("list", items=[summary(scale, found) for scale, found in records.items()])]
    parts += [Part("fold", GRADIENTS, [grid(GRADIENT_HEAD, gradients)])] if gradients else []
    by_name: dict[str, list[Shown]] = {}
    for table, pictures in shown:
        by_name.setdefault(table.name, []).append((table, pictures))
    parts += [Part("heading", "Not yet reproduced", level=2)]
    parts += [Part("list", items=[missing([t for t, _ in group]) for group in by_name.values()])]
    return parts + [part for group in by_name.values() for part in section(group)]


def illustrate(tables: Sequence[Table], results: Path) -> tuple[list[Shown], list[Path]]:
    """Draw what can be drawn; return the tables with their pictures, and the files drawn."""
    shown, written = list[Shown](), list[Path]()
    for table in tables:
        path = results / f"{table.name}-{table.scale}.png"
        pictures = [(table.title, path)] if save_picture(table, path) else []
        written += [path for _, path in pictures]
        copies = copies_of(table.name, results / table.scale)
        shown.append((table, [*pictures, *((f"{table.title}, as evaluated", p) for p in copies)]))
    return shown, written


def findings(judged: Iterable[Verdict], n: int = 3) -> list[str]:
    """Return the n claims that are decided by the largest margin, with what decided them."""
    claims: dict[tuple[str, str, str], list[Verdict]] = {}
    for v in judged:
        if v.group != UNDECIDED:
            claims.setdefault((v.claim, v.group, v.scale), []).append(v)
    found = sorted(claims.items(), key=lambda item: -max(v.margin for v in item[1]))[:n]
    return [
        f"{claim}: {group} at scale {scale}. "
        + "; ".join(f"{v.what}, {' against '.join(v.sides)}" for v in group_of)
        + "."
        for (claim, group, scale), group_of in found
    ] or ["No claim is decided yet."]


def grid(head: list[str], rows: Iterable[list[str]]) -> Part:
    return Part("grid", items=[head, *rows], level=len(head))


def section(group: Sequence[Shown]) -> list[Part]:
    """Return a table's scales under one heading, notes that all have in common at the end."""
    tables = [table for table, _ in group]
    common = [note for note in tables[0].notes if all(note in each.notes for each in tables)]
    parts = [Part("heading", tables[0].title, level=2)]
    for table, pictures in group:
        head, *found = formats.parts_of(table, f"Scale {table.scale}")
        found = [part for part in found if part.kind != "list"]
        own = [note for note in table.notes if note not in common]
        parts += [Part("heading", head.text, level=3), *found]
        parts += [Part("list", items=own)] if own else []
        parts += [Part("picture", title, [path]) for title, path in pictures]
    return parts + ([Part("list", items=common)] if common else [])


def summary(scale: str, records: Mapping[str, Record]) -> str:
    """Say how much was run, how often training diverged, and how many runs with SGLD had help."""
    seeds = [seed for record in records.values() for seed in record["seeds"].values()]
    hours = sum(seed["seconds"] or 0 for seed in seeds) / 3600
    settings = [seed["settings"] for seed in seeds if has_chains(seed["settings"])]
    helped = sum(bool(s.get("sgld_l2") or s.get("clip_grad")) for s in settings)
    held = f" ({helped} with an L2 penalty on the energies or clipped gradients)" * bool(helped)
    (without, of_without), (with_sgld, of_with) = divergences(records)
    return (
        f"{scale}: {len(records)} experiments, {len(seeds)} runs, {hours:.1f} hours of training. "
        f"Runs that have diverged, of those without SGLD: {without} of {of_without}; of those with "
        f"SGLD: {with_sgld} of {of_with}{held}."
    )


def missing(scales: Sequence[Table]) -> str:
    """Say which rows of a table have no number at any scale, and how many at the paper's."""
    # A row's name is another at each scale, and it is two lines where a stand-in is.
    names: dict[str, str] = {}
    done: dict[str, dict[str, set[str]]] = {}  # row -> experiment -> scales with a number
    for table in scales:
        for row in table.rows:
            for experiment in row.experiments:
                base = experiment.removesuffix(OTHER)
                names.setdefault(base, row.model)
                found = done.setdefault(base, {}).setdefault(experiment, set())
                found |= {table.scale} if has_number(row, experiment) else set()
    nowhere = []
    for base, experiments in done.items():
        without = [experiment for experiment, found in experiments.items() if not found]
        whole = len(without) == len(experiments)
        nowhere += [names[base]] if whole else [
            f"{names[base]} on CIFAR-10{'0' * name.endswith(OTHER)}" for name in without
        ]  # fmt: skip
    at_paper = sum(all("paper" in found for found in each.values()) for each in done.values())
    listed = f"; at no scale: {', '.join(nowhere)}" if nowhere else ""
    return f"{scales[0].title}: {at_paper} of {len(done)} rows at the paper's scale{listed}."


def has_number(row: Row, experiment: str) -> bool:
    """Tell whether an experiment of the row has a number; of two one is CIFAR-100's."""
    return any(
        number.mean is not None
        for key, number in row.numbers.items()
        if len(row.experiments) == 1
        or key.endswith("/cifar100") == (experiment == row.experiments[1])
    )


def html(parts: Sequence[Part]) -> str:
    """Return the page as one document that loads nothing: pictures and style are within it."""
    return document("results.html", parts=parts, anchor=formats.anchor)
