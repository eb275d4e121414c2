"""RESULTS.md: findings, verdicts and all tables, from the records alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reports.page.markup import TEMPLATES
from reports.tables import TABLES, formats
from reports.tables.claims import CONTRADICTED, HOLDS, UNDECIDED, Verdict, gradient_rows, verdicts
from reports.tables.pictures import SEPARATOR, copies_of, save_picture
from reports.tables.records import Record, Seed, write
from reports.tables.table import Table, keys_of, starts_of
from runs.files import read_json
from runs.terms import has_chains

Shown = tuple[Table, Sequence[tuple[str, Path]]]  # and its pictures


def write_results(
    built: Sequence[Table], records: Mapping[str, Mapping[str, Record]], results: Path
) -> list[Path]:
    """Write the tables' pictures, and RESULTS.md, whose links are relative to its folder. records:
    scale -> experiment -> record."""
    written: list[Path] = []
    tables: dict[str, list[Shown]] = {}
    for table in built:
        path = results / f"{table.name}-{table.scale}.png"
        drawn = [path] if save_picture(table, path) else []
        copies = copies_of(table.name, results / table.scale)
        pictures = [(table.title, path) for path in drawn]
        for path in copies:
            _, run, picture = path.stem.split(SEPARATOR)
            pictures.append((f"{table.title}, as evaluated: {picture} of {run}", path))
        tables.setdefault(table.name, []).append((table, pictures))
        written += drawn
    gpu = results.parent / "benchmarks" / "gpu" / "gpu.json"
    judged = {scale: verdicts(scale, found) for scale, found in records.items()}
    every = [verdict for found, _ in judged.values() for verdict in found]
    values: dict[str, Any] = {
        "findings": findings(every),
        "verdicts": {
            group: [v.cells for v in every if v.group == group]
            for group in (HOLDS, CONTRADICTED, UNDECIDED)
        },
        "unjudged": {scale: left for scale, (_, left) in judged.items()},
        "summaries": [summary(scale, found) for scale, found in records.items()],
        "gradients": [[s, *row] for s, found in records.items() for row in gradient_rows(found)],
        "missing": [missing(name, records) for name in tables],
        "gpu": read_json(gpu).get("summary") if gpu.exists() else None,
        "tables": list(tables.values()),
        "base": results.parent,
        "folds": True,
    }
    text = formats.markdown("results.jinja", **values)
    return [*written, write(results.parent / "RESULTS.md", text)]


def common_notes(scales: Sequence[Shown]) -> list[str]:
    """Return the notes that a table has at each of its scales."""
    return [note for note in scales[0][0].notes if all(note in t.notes for t, _ in scales)]


TEMPLATES.filters["common_notes"] = common_notes


def findings(judged: Iterable[Verdict], n: int = 3) -> list[str]:
    """Return the n claims that are decided by the largest margin, with what decided them."""
    claims: dict[tuple[str, str], list[Verdict]] = {}
    for v in judged:
        if v.group != UNDECIDED:
            claims.setdefault((v.claim, v.group), []).append(v)
    found = sorted(claims.items(), key=lambda item: -max(v.margin for v in item[1]))[:n]
    return [
        f"{claim}: "
        + "; ".join(
            f"{group} at scale {v.scale} ({v.what}, {' against '.join(v.sides)})" for v in group_of
        )
        + "."
        for (claim, group), group_of in found
    ]


def summary(scale: str, records: Mapping[str, Record]) -> str:
    """Say how much was run, how often training diverged, and how many runs with SGLD had help."""
    seeds = [seed for record in records.values() for seed in record.values()]
    hours = sum(seed["seconds"] or 0 for seed in seeds) / 3600
    runs: dict[bool, list[Seed]] = {False: [], True: []}  # without SGLD, and with it
    for seed in seeds:
        if seed["settings"].get("method") != "linear-probe":
            runs[has_chains(seed["settings"])].append(seed)
    lost = [
        f"{sum(seed['divergences'] > 0 or seed['state'] == 'diverged' for seed in of)} of {len(of)}"
        for of in runs.values()
    ]
    settings = [seed["settings"] for seed in runs[True]]
    helped = sum(bool(s.get("sgld_l2") or s.get("clip_grad")) for s in settings)
    held = f" ({helped} with an L2 penalty on the energies or clipped gradients)" * bool(helped)
    return (
        f"{scale}: {len(records)} experiments, {len(seeds)} runs, {hours:.1f} hours of training. "
        f"Runs that have diverged, of those without SGLD: {lost[0]}; of those with SGLD: "
        f"{lost[1]}{held}."
    )


def missing(name: str, records: Mapping[str, Mapping[str, Record]]) -> str:
    """Say which rows of a table have no number at any scale, and how many at the paper's."""
    declared, starts = TABLES[name], starts_of(name)
    known = {
        scale: {
            experiment
            for experiment, record in found.items()
            if any(key.startswith(starts) for key in keys_of(record))
        }
        for scale, found in records.items()
    }
    anywhere, at_paper = set[str]().union(*known.values()), known.get("paper", set())
    rows = [(model, own) for model, *own in declared["rows"] if own]
    nowhere: list[str] = []
    for model, own in rows:
        without = [name for name in own if name not in anywhere]
        parts = [f"{model} on CIFAR-10{'0' * name.endswith('-c100')}" for name in without]
        nowhere += [model] if without == own else parts
    listed = f"; at no scale: {', '.join(nowhere)}" if nowhere else ""
    whole = sum(at_paper >= set(own) for _, own in rows)
    return f"{declared['title']}: {whole} of {len(rows)} rows at the paper's scale{listed}."
