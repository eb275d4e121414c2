"""Write RESULTS.md, findings, verdicts and all tables, from the records alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reports.page.markup import TEMPLATES
from reports.tables import TABLES, formats
from reports.tables.claims import CONTRADICTED, HOLDS, UNDECIDED, Verdict, gradient_rows, verdicts
from reports.tables.pictures import SEPARATOR, copies_of, save_picture
from reports.tables.records import Record, Seed, write
from reports.tables.table import TIME, Table, keys_of, prefixes_of
from runs.files import read_json
from runs.terms import has_chains

Illustrated = tuple[Table, Sequence[tuple[str, Path]]]  # a table and its pictures: title, path


def write_results(
    built: Sequence[Table],
    records: Mapping[str, Mapping[str, Record]],
    results: Path,
    at_paper: Mapping[str, Collection[str]],
) -> list[Path]:
    """Write the tables' pictures and RESULTS.md, whose links are relative to its folder. `records`:
    scale -> experiment -> record. `at_paper`: table -> its experiments at the paper's scale, for
    tables that have any."""
    written: list[Path] = []
    tables: dict[str, list[Illustrated]] = {}
    for table in built:
        path = results / f"{table.name}-{table.scale}.png"
        drawn = [path] if save_picture(table, path) else []
        pictures = [(table.title, path) for path in drawn]
        for path in copies_of(table.name, results / table.scale):
            _, run, picture = path.stem.split(SEPARATOR, 2)
            pictures.append((f"{table.title}, as evaluated: {picture} of {run}", path))
        tables.setdefault(table.name, []).append((table, pictures))
        written += drawn
    gpu = results.parent / "benchmarks" / "gpu" / "gpu.json"
    by_scale = {scale: verdicts(scale, of_scale) for scale, of_scale in records.items()}
    judged = [verdict for of_scale, _ in by_scale.values() for verdict in of_scale]
    values: dict[str, Any] = {
        "findings": findings(judged),
        "verdicts": {
            group: [v.cells for v in judged if v.group == group]
            for group in (HOLDS, CONTRADICTED, UNDECIDED)
        },
        "unjudged": {scale: texts for scale, (_, texts) in by_scale.items()},
        "summaries": [summary(scale, of_scale) for scale, of_scale in records.items()],
        "gradients": [[s, *row] for s, r in records.items() for row in gradient_rows(r)],
        "missing": [missing(name, records, at_paper[name]) for name in tables if name in at_paper],
        "gpu": read_json(gpu).get("summary") if gpu.exists() else None,
        "tables": list(tables.values()),
        "base": results.parent,
        "folds": True,
    }
    text = formats.markdown("results.jinja", **values)
    return [*written, write(results.parent / "RESULTS.md", text)]


def common_notes(scales: Sequence[Illustrated]) -> list[str]:
    """Return the notes that a table has at each of its scales."""
    return [note for note in scales[0][0].notes if all(note in t.notes for t, _ in scales)]


TEMPLATES.filters["common_notes"] = common_notes


def findings(judged: Iterable[Verdict], n: int = 3) -> list[str]:
    """Return lines about the n claims with the largest margins, with the numbers of each scale."""
    claims: dict[tuple[str, str], list[Verdict]] = {}
    for v in judged:
        if v.group != UNDECIDED:
            claims.setdefault((v.claim, v.group), []).append(v)
    largest = sorted(claims.items(), key=lambda item: -max(v.margin for v in item[1]))[:n]
    return [
        f"{claim}: "
        + "; ".join(
            f"{group} at scale {v.scale} ({v.what}, {' against '.join(v.sides)})" for v in of_claim
        )
        + "."
        for (claim, group), of_claim in largest
    ]


def summary(scale: str, records: Mapping[str, Record]) -> str:
    """Write how much was run, how many runs diverged, and how many with SGLD were regularised."""
    seeds = [seed for record in records.values() for seed in record.values()]
    hours = sum(seed["seconds"] or 0 for seed in seeds) / 3600
    runs: dict[bool, list[Seed]] = {False: [], True: []}  # without SGLD, and with it
    for seed in seeds:
        if seed["settings"].get("method") != "linear-probe":
            runs[has_chains(seed["settings"])].append(seed)
    diverged = [
        f"{sum(seed['divergences'] > 0 or seed['state'] == 'diverged' for seed in of)} of {len(of)}"
        for of in runs.values()
    ]
    settings = [seed["settings"] for seed in runs[True]]
    n = sum(bool(s.get("sgld_l2") or s.get("clip_grad")) for s in settings)
    regularised = f" ({n} with an L2 penalty on the energies or clipped gradients)" * bool(n)
    return (
        f"{scale}: {len(records)} experiments, {len(seeds)} runs, {hours:.1f} hours of training. "
        f"Runs that have diverged, of those without SGLD: {diverged[0]}; of those with SGLD: "
        f"{diverged[1]}{regularised}."
    )


def missing(
    name: str, records: Mapping[str, Mapping[str, Record]], at_paper: Collection[str]
) -> str:
    """List a table's rows without a number at any scale, the time of a step aside, which every run
    has; count the complete rows at the paper's, of the rows with experiments `at_paper`."""
    declared, prefixes = TABLES[name], prefixes_of(name)
    measured = {
        scale: {
            experiment
            for experiment, record in of_scale.items()
            if any(key.startswith(prefixes) for key in keys_of(record) - {TIME})
        }
        for scale, of_scale in records.items()
    }
    anywhere = set[str]().union(*measured.values())
    rows = [(model, experiments) for model, *experiments in declared["rows"] if experiments]
    nowhere: list[str] = []
    for model, experiments in rows:
        without = [name for name in experiments if name not in anywhere]
        parts = [f"{model} on CIFAR-10{'0' * name.endswith('-c100')}" for name in without]
        nowhere += [model] if without == experiments else parts
    listed = f"; at no scale: {', '.join(nowhere)}" if nowhere else ""
    planned = [of_row for _, names in rows if (of_row := {*names} & {*at_paper})]
    complete = sum(measured.get("paper", set()) >= of_row for of_row in planned)
    return f"{declared['title']}: {complete} of {len(planned)} rows at the paper's scale{listed}."
