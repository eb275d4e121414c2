"""All tables as one Markdown page and one HTML page, from the records alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reports.page.markup import Html, join, note, picture, table, tag
from reports.page.page import HERE, policy
from reports.tables.cells import OTHER, Built, Line
from reports.tables.claims import (
    GRADIENT_HEAD,
    divergences,
    gradient_rows,
    verdicts,
)
from reports.tables.formats import HOW, grids, markdown, plain
from reports.tables.records import Record
from runs.screen import markdown as aligned
from runs.terms import has_chains

INTRO = (
    "The tables and figures of HDGE (arXiv 2007.09070), the paper's number beside ours.",
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
    "A claim holds where the means over seeds differ in its direction by Welch's t-test at 5 %, "
    "two-sided; 'open' where they do not differ. Every claim is judged by itself: of twenty where "
    "there is no difference, one would seem to have one."
)
UNJUDGED = "Open, because not both sides were run at this scale:"
GRADIENTS = "Gradients of the terms, before their weights"
CLAIM_HEAD = ["Claim", "In", "First", "Second", "At this scale"]


@dataclass(frozen=True)
class Shown:
    """A table and its pictures, all in the folder of the results: drawn from the numbers, and
    those that the evaluations left (title, path)."""

    table: Built
    drawn: Path | None
    pictures: Sequence[tuple[str, Path]]


def results_markdown(
    shown: Sequence[Shown], records: Mapping[str, Mapping[str, Record]], results: Path
) -> str:
    """`records`: scale -> experiment -> record. Links are relative to the folder above results."""
    parts = ["# Results", *INTRO]
    for scale, found in records.items():
        parts += [f"## What it shows: {scale}", summary(found)]
        rows, unjudged = verdicts(found)
        if rows:
            parts += [RULE, grid(CLAIM_HEAD, rows)]
        if unjudged:
            parts.append(f"{UNJUDGED} {'; '.join(map(plain, unjudged))}.")
        measured = gradient_rows(found)
        if measured:
            parts += [f"### {GRADIENTS}: {scale}", grid(GRADIENT_HEAD, measured)]
    parts += ["## Not yet reproduced", missing(shown)]
    for item in shown:
        built = item.table
        parts.append(markdown(built).rstrip("\n"))
        for title, path in pictures_of(item):
            where = path.relative_to(results.parent).as_posix()
            parts.append(f"![{plain(title)}]({where})")
        stem = f"{results.name}/{built.name}-{built.scale}"
        parts.append(f"As [CSV]({stem}.csv), [LaTeX]({stem}.tex), [Markdown]({stem}.md).")
    return "\n\n".join(parts) + "\n"


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    columns = [str(i) for i in range(len(head))]
    dicts = [dict(zip(columns, map(plain, row), strict=True)) for row in rows]
    return aligned(dicts, columns, headers=dict(zip(columns, head, strict=True)))


def pictures_of(item: Shown) -> list[tuple[str, Path]]:
    drawn = [] if item.drawn is None else [(item.table.layout.title, item.drawn)]
    return [*drawn, *item.pictures]


def summary(records: Mapping[str, Record]) -> str:
    """How much was run, and how often training diverged."""
    seeds = [seed for record in records.values() for seed in record["seeds"].values()]
    hours = sum(seed["seconds"] or 0 for seed in seeds) / 3600
    without, with_sgld = divergences(records)
    return (
        f"{len(records)} experiments, {len(seeds)} runs, {hours:.1f} hours of training. "
        f"Runs that have diverged, of those without SGLD: {without[0]} of {without[1]}; of those "
        f"with SGLD: {with_sgld[0]} of {with_sgld[1]}{held(seeds)}."
    )


def held(seeds: Sequence[Mapping[str, Any]]) -> str:
    """How many of the runs with SGLD had help."""
    sgld = [seed["settings"] for seed in seeds if has_chains(seed["settings"])]
    helped = sum(bool(s.get("sgld_l2") or s.get("clip_grad")) for s in sgld)
    return f" ({helped} with an L2 penalty on the energies or clipped gradients)" if helped else ""


def missing(shown: Sequence[Shown]) -> str:
    """The rows that nobody has trained, or none has finished, at any scale and at the paper's."""
    tables: dict[str, list[Built]] = {}
    for item in shown:
        tables.setdefault(item.table.name, []).append(item.table)
    lines = []
    for scales in tables.values():
        # A row -> its shown name, and each of its experiments -> the scales that it has numbers at.
        # A row's name is another at each scale, and it is two lines where a stand-in is.
        names: dict[str, str] = {}
        rows: dict[str, dict[str, set[str]]] = {}
        for built in scales:
            for line in built.lines:
                for experiment, done in halves(line).items():
                    row = experiment.removesuffix(OTHER)
                    names.setdefault(row, line.model)
                    found = rows.setdefault(row, {}).setdefault(experiment, set())
                    found |= {built.scale} if done else set()
        nowhere = [text for row, found in rows.items() for text in lacking(names[row], found)]
        at_paper = sum(all("paper" in done for done in found.values()) for found in rows.values())
        title = scales[0].layout.title
        text = f"- {plain(title)}: {at_paper} of {len(rows)} rows at the paper's scale"
        if nowhere:
            text += f"; at no scale: {', '.join(map(plain, nowhere))}"
        lines.append(text + ".")
    return "\n".join(lines)


def halves(line: Line) -> dict[str, bool]:
    """Each experiment of the line -> whether it has a number; of two one is CIFAR-100's."""
    experiments = line.experiment.split(", ") if line.experiment else []
    of_other = {key: key.endswith("/cifar100") for key in line.cells}
    return {
        experiment: any(
            cell.ours
            for key, cell in line.cells.items()
            if len(experiments) == 1 or of_other[key] == (i == 1)
        )
        for i, experiment in enumerate(experiments)
    }


def lacking(model: str, experiments: Mapping[str, set[str]]) -> list[str]:
    """The row, or which half of it has no number at any scale."""
    without = [experiment for experiment, scales in experiments.items() if not scales]
    if len(without) == len(experiments):
        return [model]
    return [f"{model} on CIFAR-10{'0' * name.endswith(OTHER)}" for name in without]


def results_html(shown: Sequence[Shown], records: Mapping[str, Mapping[str, Record]]) -> str:
    """The same as one page that loads nothing: pictures and style are within it."""
    body = [section(scale, found) for scale, found in records.items()]
    listed = [tag("li", line[2:]) for line in missing(shown).splitlines()]
    unfinished = tag("section", tag("h2", "Not yet reproduced"), tag("ul", *listed))
    body += [unfinished, *(table_section(item) for item in shown)]
    links = [
        tag("a", f"{name.replace('_', ' ')} ({scale})", href=f"#{name}-{scale}")
        for name, scale in ((item.table.name, item.table.scale) for item in shown)
    ]
    style = Html((HERE / "page.css").read_text(encoding="utf-8"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy("")),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", "Results"),
        tag("style", style),
    )
    intro = [tag("p", text.replace("`", "")) for text in INTRO]
    heading = tag("header", tag("h1", "Results"), *intro, tag("nav", *links, aria_label="Tables"))
    document = tag("html", head, tag("body", heading, tag("main", *body)), lang="en")
    return f"<!DOCTYPE html>\n{document}\n"


def section(scale: str, records: Mapping[str, Record]) -> Html:
    rows, unjudged = verdicts(records)
    found = (
        [tag("p", RULE, class_="reading"), table(CLAIM_HEAD, rows, text_columns=5)] if rows else []
    )
    if unjudged:
        found.append(tag("p", f"{UNJUDGED} {'; '.join(unjudged)}."))
    measured = gradient_rows(records)
    if measured:
        found += [tag("h3", GRADIENTS), table(GRADIENT_HEAD, measured, text_columns=2)]
    return tag("section", tag("h2", f"What it shows: {scale}"), tag("p", summary(records)), *found)


def table_section(item: Shown) -> Html:
    built, parts = item.table, []
    for title, head, rows in grids(built):
        body = table(head, rows, text_columns=len(head) if title == HOW else 1)
        parts += [tag("h3", title), body]
    parts += [picture(path, title) for title, path in pictures_of(item)]
    if not any(line.about.get("setting") for line in built.lines):
        parts.append(note("Nothing of this table has been run yet."))
    notes = [tag("li", text) for text in built.notes]
    title = tag("h2", f"{built.layout.title} ({built.scale})")
    listed = tag("ul", *notes) if notes else None
    return tag("section", title, join(parts), listed, id=f"{built.name}-{built.scale}")
