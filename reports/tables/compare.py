"""Any runs side by side: what differs in their settings, what they cost, what they reached."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from reports.page import Run, read_run
from reports.page.headline import last_epoch
from reports.page.markup import number
from reports.page.paper import SCORES
from reports.tables.about import about, commits, divergences, joined, network
from reports.tables.formats import aligned, value_text
from reports.tables.protocols import check_protocols
from reports.tables.records import Record, seed_record
from reports.tables.table import Row, Table, keys_of, measured
from reports.tables.titles import digits, full_title, natural
from runs.cli import UsageError

FAMILIES = {  # family of keys -> its block
    "trained": "Training",
    **{"accuracy": "Accuracy", "ece_accuracy": "Calibration", "ece": "Calibration"},
    **{"auroc": "AUROC, {}", "hist": "AUROC, {} of the histogram", "fid": "Samples"},
    **dict.fromkeys(("is", "chain_fid", "precision", "recall", "read_as_asked"), "Samples"),
    **{"robust": "Accuracy (%) under attack, {} radius", "samples": "Samples drawn"},
    **{"asked": "Samples drawn", "ms_per_step": "Cost of a training step"},
}
SHOWN_BY_NETWORK = ("arch", "depth", "width", "levels")


def read_runs(folders: Sequence[Path]) -> tuple[dict[str, Run], dict[str, Record]]:
    """Return label -> Run and label -> what `compared` takes. Raises NoRun for a folder that holds
    no run, and UsageError for one that is given twice."""
    labels = [folder.resolve().name for folder in folders]
    if len(set(labels)) < len(labels):
        labels = [str(folder) for folder in folders]
    if len(set(labels)) < len(labels):
        raise UsageError("RUN_FOLDER: a folder was given twice: give each one once")
    runs, records = {}, {}
    for label, folder in zip(labels, folders, strict=True):
        runs[label] = run = read_run(folder)
        record = seed_record(folder)
        limit, last = run.settings.get("max_steps"), last_epoch(run)
        if limit and record["state"] == "finished":
            record["state"] = f"stopped by --max_steps {limit}"
        if last is not None:
            answer = record["answers"].setdefault("training", {"numbers": {}})
            answer["numbers"]["trained/test"] = last["value"]
        records[label] = {**record, "seed": run.settings.get("seed")}
    return runs, records


def compared(runs: Mapping[str, Record]) -> Table:
    """Return the runs' numbers, a row a run; `runs`: label -> its record, of one seed.

    Raises UsageError where the runs' numbers are of different protocol versions.
    """
    # As records of one seed whose numbers are shown however it ended.
    records = {
        label: {"seeds": {"": {**record, "state": "finished"}}} for label, record in runs.items()
    }
    notes = check_protocols("RUN_FOLDER", records, ("",))
    keys = sorted({key for record in records.values() for key in keys_of(record)}, key=natural)
    blocks: dict[str, list[str]] = {}
    for family, title in FAMILIES.items():
        for key in (key for key in keys if key.split("/")[0] == family):
            kind = key.split("/")[1] if "/" in key else ""
            blocks.setdefault(title.format(SCORES.get(kind, kind)), []).append(key)
    rows = [
        Row(
            label,
            (label,),
            {
                **about("runs", record),
                "runs": ", ".join([runs[label]["state"], *divergences([runs[label]])]),
            },
            {key: measured(record, key) for found in blocks.values() for key in found},
        )
        for label, record in records.items()
    ]
    return Table("comparison", "runs", "Comparison", list(blocks.items()), rows, notes)


def comparison(runs: Mapping[str, Record], table: Table) -> str:
    """Return `lines_of` as a Markdown table, and the notes."""
    text, notes = aligned([["", *runs], *lines_of(runs, table)]), notes_of(runs, table)
    return "\n".join([text, *(["", *notes] if notes else [])]) + "\n"


def lines_of(runs: Mapping[str, Record], table: Table) -> list[list[str]]:
    """Return a name and a cell for each run, of each setting in which the runs differ, of what they
    cost and of what they reached."""
    every = list(runs.values())
    lines = [["network", *map(network, every)]]
    for name in sorted({name for record in every for name in record["settings"]}):
        found = [str(record["settings"].get(name, "-")) for record in every]
        if name not in SHOWN_BY_NETWORK and (len(set(found)) > 1 or name == "dataset"):
            lines.append([f"--{name}", *found])
    lines += [
        [key, *(str(record[key]) for record in every)]
        for key in ("seed", "state", "epochs", "steps")
    ]
    lines += [
        ["hours", *(shown(record["seconds"], 1 / 3600, 2) for record in every)],
        ["images a second", *(shown(record["images_per_s"], 1, 0) for record in every)],
        ["hardware", *(joined(record["devices"]) for record in every)],
        ["commit", *(joined(commits(record)) for record in every)],
    ]
    for key in (key for _, found in table.blocks for key in found):
        texts = [value_text(row.numbers[key], digits(key)) for row in table.rows]
        lines.append([full_title(key), *(text.removesuffix(" (1)") for text in texts)])
    return lines


def notes_of(runs: Mapping[str, Record], table: Table) -> list[str]:
    return [*of_seeds(runs, table), *table.notes]


def of_seeds(runs: Mapping[str, Record], table: Table) -> Iterator[str]:
    """Yield a line about each group of runs that differ in the seed alone: the mean and standard
    deviation (n - 1) of each number that all of them have."""
    groups: dict[str, list[str]] = {}
    for label, record in runs.items():
        same = [record[name] for name in ("settings", "start", "steps")]
        groups.setdefault(repr(same), []).append(label)
    for labels in groups.values():
        seeds = [str(runs[label]["seed"]) for label in labels]
        if len(set(seeds)) < max(2, len(labels)):
            continue
        group = {"seeds": {label: {**runs[label], "state": "finished"} for label in labels}}
        numbers = {key: measured(group, key) for _, found in table.blocks for key in found}
        told = [
            f"{full_title(key)} {n.mean:.{digits(key)}f} +- {n.std:.{digits(key)}f}"
            for key, n in numbers.items()
            if n.n == len(labels)
        ]
        if told:
            named = f"{', '.join(labels)} differ in the seed alone ({', '.join(seeds)})"
            yield f"{named}, mean +- sd: {'; '.join(told)}."


def shown(value: object, factor: float, places: int) -> str:
    found = number(value)
    return "-" if found is None else f"{factor * found:.{places}f}"
