"""Records as a table's cells: means over seeds, and why a cell is empty."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reports.page.markup import number
from reports.page.paper import image_size
from reports.tables.about import (
    NOT_RUN,
    QUOTED,
    UNKNOWN,
    about,
    dataset,
    devices,
    finished_seeds,
    shown_name,
    states,
)
from reports.tables.layout import LAYOUTS, Layout
from reports.tables.protocols import check_protocols
from reports.tables.records import Record
from reports.tables.rows import NAMES, RENAMED, ROWS, published
from reports.tables.titles import OF_SAMPLES, PERCENT, natural, set_title
from runs.names import IMAGE_SIZE

OTHER = "-c100"  # an experiment's name on CIFAR-100
NOT_ASKED, NO_DATA, DEVICES = "not asked", "no data", "several devices"
OTHER_FEATURES = "other features"  # or another number of samples: it has a column of its own


@dataclass(frozen=True)
class Value:
    """`std` is the sample standard deviation over n > 1 seeds; percent where the column is."""

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class Cell:
    """`state` says why there is no number of ours."""

    paper: tuple[float, float | None] | None
    ours: Value | None
    state: str = ""


@dataclass(frozen=True)
class Line:
    """`experiment`: several are divided by ", ".
    `about`: runs, setting, epochs, network, hardware, hours, commit: each a text.
    """

    model: str
    experiment: str | None
    about: dict[str, str]
    cells: dict[str, Cell]


@dataclass(frozen=True)
class Built:
    name: str
    scale: str
    layout: Layout
    blocks: list[tuple[str, list[str]]]  # title, keys
    lines: list[Line]
    notes: list[str] = field(default_factory=list)


def build(
    table: str, scale: str, experiments: Sequence[str], records: Mapping[str, Record]
) -> Built:
    """The table of one scale; `records`: experiment -> its record at that scale.

    Raises UsageError where numbers of different protocols would stand in one table or be averaged.
    """
    layout = LAYOUTS.get(table, Layout(table, ()))
    used = {name: records[name] for name in experiments if name in records}
    prefixes = tuple(prefix for block in layout.blocks for prefix in block.prefixes)
    notes = [*layout.notes, *check_protocols(table, scale, used, prefixes)]
    names, paper = published(table)
    trained_on = {dataset(seed) for record in used.values() for seed in record["seeds"].values()}
    trained_on.discard(UNKNOWN)
    stand_in = bool(trained_on) and not trained_on & {"cifar10", "cifar100"}
    sizes = {image_size(seed["settings"]) for r in used.values() for seed in r["seeds"].values()}
    other_size = sizes - {IMAGE_SIZE}
    blocks = []
    for block in layout.blocks:
        measured = {key for record in used.values() for key in keys_of(record)}
        more = {key for key in measured if key.startswith(block.prefixes)} - set(block.keys)
        fixed = [key for key in block.keys if not stand_in or key in measured]
        blocks.append((block.title, [*fixed, *sorted(more, key=natural)]))
    rows = {row for name, row in ROWS.get(table, {}).items() if name in experiments}
    if stand_in:
        names = [name for name in names if name in rows]
        notes.append(
            f"Trained on {' and '.join(map(set_title, sorted(trained_on)))} in place of CIFAR: the "
            "paper's numbers are about other data and are left out."
        )
    for size in other_size:
        names, paper = [name for name in names if name in rows], {}
        notes.append(
            f"Trained on images of {size} x {size}: the paper's numbers are about {IMAGE_SIZE} x "
            f"{IMAGE_SIZE} and are left out."
        )
    keys = [key for _, found in blocks for key in found]
    lines = []
    for model, experiment in ordered(table, experiments, names):
        row = ROWS.get(table, {}).get(experiment or "", model)
        record = used.get(experiment or "")
        cells = {key: cell(key, paper.get((row, key)), experiment, record) for key in keys}
        model = shown_name(model, record)
        lines.append(Line(model, experiment, about(scale, experiment, record), cells))
    return Built(table, scale, layout, blocks, merged(lines), notes)


def merged(lines: Sequence[Line]) -> list[Line]:
    """The same row trained on CIFAR-10 and on CIFAR-100 is one line, as in the paper, unless both
    have a number in one column, as where another data set stands in for the two."""
    by_name = {line.experiment: line for line in lines if line.experiment}
    result = []
    for line in lines:
        base = (line.experiment or "").removesuffix(OTHER)
        first, second = by_name.get(base), by_name.get(base + OTHER)
        if first is None or second is None or _clash(first, second):
            result.append(line)
        elif line is first:
            result.append(_merge(first, second))
    return result


def _clash(first: Line, second: Line) -> bool:
    return any(first.cells[key].ours and second.cells[key].ours for key in first.cells)


def _merge(first: Line, second: Line) -> Line:
    cells = {
        key: second.cells[key] if key.endswith("/cifar100") else cell
        for key, cell in first.cells.items()
    }
    about = {
        key: text if text == second.about.get(key) else f"{text}; CIFAR-100: {second.about[key]}"
        for key, text in first.about.items()
        if key in second.about
    }
    about |= {key: text for key, text in first.about.items() if key not in second.about}
    about |= {
        key: f"CIFAR-100: {text}" for key, text in second.about.items() if key not in first.about
    }
    return Line(first.model, f"{first.experiment}, {second.experiment}", about, cells)


def ordered(
    table: str, experiments: Sequence[str], names: Sequence[str]
) -> list[tuple[str, str | None]]:
    """(shown name, experiment or None if quoted): the published rows, then our own."""
    rows = {name: row for name, row in ROWS.get(table, {}).items() if name in experiments}
    shown = {**NAMES, **rows, **RENAMED.get(table, {})}
    found: list[tuple[str, str | None]] = []
    for name in names:
        own = [experiment for experiment, row in rows.items() if row == name]
        found += [(shown[experiment], experiment) for experiment in own] or [(name, None)]
    return found + [(shown.get(name, name), name) for name in experiments if name not in rows]


def cell(
    key: str,
    paper: tuple[float, float | None] | None,
    experiment: str | None,
    record: Record | None,
) -> Cell:
    if experiment is None:
        return Cell(paper, None, "" if paper is None else QUOTED)
    if record is None or not record["seeds"]:
        return Cell(paper, None, NOT_RUN)
    finished = finished_seeds(record)
    ours = measured(finished, key)
    if ours is not None:
        return Cell(paper, None, ours) if isinstance(ours, str) else Cell(paper, ours)
    if not finished:
        return Cell(paper, None, states(record))
    kind, _, out = key.rpartition("/")
    if kind.split("/")[0] in OF_SAMPLES and any(k.startswith(f"{kind}/") for k in keys_of(record)):
        return Cell(paper, None, OTHER_FEATURES)
    skipped = {
        name for seed in finished for a in seed["answers"].values() for name in a.get("skipped", ())
    }
    return Cell(paper, None, NO_DATA if out in skipped else NOT_ASKED)


def measured(seeds: Sequence[Mapping[str, Any]], key: str) -> Value | str | None:
    """The mean over the seeds that have the number; None where none has, DEVICES for times that
    were not all taken on one device."""
    found = [(value, seed) for seed in seeds if (value := value_of(seed, key)) is not None]
    if key == "ms_per_step" and len({each for _, seed in found for each in devices(seed)}) > 1:
        return DEVICES
    return mean_of([value for value, _ in found]) if found else None


def mean_of(values: Sequence[float]) -> Value:
    std = statistics.stdev(values) if len(values) > 1 else None
    return Value(statistics.fmean(values), std, len(values))


def value_of(seed: Mapping[str, Any], key: str) -> float | None:
    for answer in seed["answers"].values():
        found = number(answer["numbers"].get(key))
        if found is not None:
            return 100 * found if key.split("/")[0] in PERCENT else found
    return None


def keys_of(record: Record) -> set[str]:
    seeds = finished_seeds(record)
    return {
        key for seed in seeds for answer in seed["answers"].values() for key in answer["numbers"]
    }
