"""The one type of a table, and how records become one: means over seeds, or why there is none."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from reports.page.markup import number
from reports.page.paper import PUBLISHED, SCORES, image_size
from reports.tables.about import (
    NOT_RUN,
    QUOTED,
    UNKNOWN,
    about,
    dataset,
    devices,
    shown_name,
    states,
)
from reports.tables.protocols import check_protocols
from reports.tables.records import Record, finished_seeds
from reports.tables.titles import DECLARED, OF_SAMPLES, PERCENT, TABLES, natural, set_title
from runs.names import IMAGE_SIZE

OTHER = "-c100"  # an experiment's name on CIFAR-100
NOT_ASKED, NO_DATA, DEVICES = "not asked", "no data", "several devices"
OTHER_FEATURES = "other features"  # or another number of samples: it has a column of its own


@dataclass(frozen=True)
class Number:
    """The paper's number and ours, in percent where the column is. `std` is the sample standard
    deviation over n > 1 seeds; `state` says why there is no mean."""

    paper: float | None = None
    paper_std: float | None = None
    mean: float | None = None
    std: float | None = None
    n: int = 0
    state: str = ""


@dataclass(frozen=True)
class Row:
    """`experiments`: none of a quoted row, two where one is CIFAR-100's. `about`: a text for each
    of about.COLUMNS. `numbers`: by the columns' keys."""

    model: str
    experiments: tuple[str, ...]
    about: dict[str, str]
    numbers: dict[str, Number]


@dataclass(frozen=True)
class Table:
    """`blocks`: titles, and keys of columns."""

    name: str
    scale: str
    title: str
    blocks: list[tuple[str, list[str]]]
    rows: list[Row]
    notes: list[str]


def build(
    name: str, scale: str, experiments: Sequence[str], records: Mapping[str, Record]
) -> Table:
    """Build the table of one scale; `records`: experiment -> its record at that scale.

    Raises UsageError where numbers of different protocols would stand in one table or be averaged.
    """
    declared = TABLES[name]
    layout = [DECLARED["blocks"].get(str(block), block) for block in declared["blocks"]]
    used = {name: records[name] for name in experiments if name in records}
    prefixes = tuple(prefix for *_, found in layout for prefix in found)
    notes = [DECLARED["notes"].get(note, note) for note in declared["notes"]]
    notes += check_protocols(f"--results: {name} at scale {scale}", used, prefixes)
    seeds = [seed for record in used.values() for seed in record["seeds"].values()]
    other_sets = {dataset(seed) for seed in seeds} - {UNKNOWN}
    other_sets = set() if other_sets & {"cifar10", "cifar100"} else other_sets
    other_sizes = {image_size(seed["settings"]) for seed in seeds} - {IMAGE_SIZE}
    paper = published(name)
    known = {e: row for e, row in declared["rows"].items() if e in experiments}
    if other_sets or other_sizes:  # the paper's numbers are about other images
        paper = {row: {} for row in paper if row in known.values()}
    if other_sets:
        notes.append(
            f"Trained on {' and '.join(map(set_title, sorted(other_sets)))} in place of CIFAR: the "
            "paper's numbers are about other data and are left out."
        )
    notes += [
        f"Trained on images of {size} x {size}: the paper's numbers are about {IMAGE_SIZE} x "
        f"{IMAGE_SIZE} and are left out."
        for size in other_sizes
    ]
    measured = {key for record in used.values() for key in keys_of(record)}
    blocks = []
    for title, keys, starts in layout:
        more = {key for key in measured if key.startswith(tuple(starts))} - set(keys)
        fixed = [key for key in keys if key in measured or not other_sets]
        blocks.append((title, [*fixed, *sorted(more, key=natural)]))
    keys = [key for _, found in blocks for key in found]
    rows = []
    for model, own in ordered(known, paper, experiments, pairs=not other_sets):
        numbers = paper.get(known.get(own[0], "") if own else model, {})
        shown = {**DECLARED["names"], **known, **declared.get("names", {})}
        found = [used.get(experiment) for experiment in own]
        rows.append(
            Row(
                shown_name(shown.get(own[0], own[0]), found[0]) if own else model,
                own,
                joint(*(about(scale, record) for record in found)) if own else {"runs": QUOTED},
                {key: cell(key, numbers.get(key), found) for key in keys},
            )
        )
    return Table(name, scale, declared["title"], blocks, rows, notes)


def published(table: str) -> dict[str, dict[str, Number]]:
    """Return the published rows in order: name -> key -> the paper's number, rates in percent."""
    found = PUBLISHED.get(table, {})
    rows: dict[str, dict[str, Number]] = {}
    for score, title in (*SCORES.items(), ("px", "rows")):
        for row in found.get(title, []):
            numbers = rows.setdefault(row["model"], {})
            for out, value in row.get("auroc", {}).items():
                numbers[f"auroc/{score}/{out}"] = Number(value, row.get("std", {}).get(out))
            for source, key in TABLES[table].get("published", {}).items():
                if row.get(source) is not None:
                    numbers[key] = Number(row[source])
    return rows


def ordered(
    known: Mapping[str, str], paper: Mapping[str, Any], experiments: Sequence[str], pairs: bool
) -> list[tuple[str, tuple[str, ...]]]:
    """Return (published name, experiments): the published rows, quoted ones without experiments,
    then our own. The same row of CIFAR-10 and of CIFAR-100 is one, as in the paper, if `pairs`."""
    found: list[tuple[str, tuple[str, ...]]] = []
    for name in paper:
        own = [experiment for experiment, row in known.items() if row == name]
        found += [(name, (experiment,)) for experiment in own] or [(name, ())]
    found += [("", (experiment,)) for experiment in experiments if experiment not in known]
    if pairs:
        of_both = {e for e in experiments if e + OTHER in experiments}
        found = [
            (name, (*own, own[0] + OTHER) if own and own[0] in of_both else own)
            for name, own in found
            if not own or own[0].removesuffix(OTHER) not in of_both or own[0] in of_both
        ]
    return found


def joint(first: dict[str, str], second: dict[str, str] | None = None) -> dict[str, str]:
    """Say where the row of CIFAR-100 was made differently."""
    texts = dict(first)
    for key, text in (second or first).items():
        before = [first[key]] if key in first else []
        texts[key] = text if before == [text] else "; ".join([*before, f"CIFAR-100: {text}"])
    return texts


def cell(key: str, paper: Number | None, records: Sequence[Record | None]) -> Number:
    """Return the mean over seeds beside the paper's number; of two records one is CIFAR-100's."""
    paper = paper or Number()
    if not records:
        return replace(paper, state="" if paper.paper is None else QUOTED)
    ours = measured(records[key.endswith("/cifar100") and len(records) > 1], key)
    return replace(ours, paper=paper.paper, paper_std=paper.paper_std)


def measured(record: Record | None, key: str) -> Number:
    """Return the mean over the finished seeds that have the number, or why there is none."""
    if record is None or not record["seeds"]:
        return Number(state=NOT_RUN)
    seeds = list(finished_seeds(record).values())
    found = [(value, seed) for seed in seeds if (value := value_of(seed, key)) is not None]
    if found:
        if key == "ms_per_step" and len({each for _, seed in found for each in devices(seed)}) > 1:
            return Number(state=DEVICES)
        values = [value for value, _ in found]
        std = statistics.stdev(values) if len(values) > 1 else None
        return Number(mean=statistics.fmean(values), std=std, n=len(values))
    kind, _, out = key.rpartition("/")
    if not seeds:
        return Number(state=states(record))
    if kind.split("/")[0] in OF_SAMPLES and any(k.startswith(f"{kind}/") for k in keys_of(record)):
        return Number(state=OTHER_FEATURES)
    answers = [answer for seed in seeds for answer in seed["answers"].values()]
    skipped = any(out in answer.get("skipped", ()) for answer in answers)
    return Number(state=NO_DATA if skipped else NOT_ASKED)


def value_of(seed: Mapping[str, Any], key: str) -> float | None:
    for answer in seed["answers"].values():
        found = number(answer["numbers"].get(key))
        if found is not None:
            return 100 * found if key.split("/")[0] in PERCENT else found
    return None


def keys_of(record: Record) -> set[str]:
    answers = [seed["answers"].values() for seed in finished_seeds(record).values()]
    return {key for found in answers for answer in found for key in answer["numbers"]}
