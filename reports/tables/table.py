"""The one type of a table, and how records become one: means over seeds, or why there is none."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from reports.page.paper import image_size
from reports.tables import TABLES, about
from reports.tables.protocols import check_protocols
from reports.tables.records import Record, Seed, finished_seeds
from reports.tables.titles import OF_SAMPLES, PERCENT, natural, set_title
from runs.names import IMAGE_SIZE

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

    @property
    def keys(self) -> list[str]:
        return [key for _, keys in self.blocks for key in keys]


def build(
    name: str, scale: str, experiments: Sequence[str], records: Mapping[str, Record]
) -> Table:
    """Build the table of one scale; `records`: experiment -> its record at that scale.

    Raises UsageError where numbers of different protocols would stand in one table or be averaged.
    """
    declared = TABLES[name]
    used = {name: records[name] for name in experiments if name in records}
    place = f"--results: {name} at scale {scale}"
    notes = [*declared["notes"], *check_protocols(place, used, starts_of(name))]
    seeds = [seed for record in used.values() for seed in record.values()]
    other_sets = {about.dataset(seed) for seed in seeds} - {about.UNKNOWN}
    other_sets = set() if other_sets & {"cifar10", "cifar100"} else other_sets
    other_sizes = {image_size(seed["settings"]) for seed in seeds} - {IMAGE_SIZE}
    left_out = "the paper's numbers are about {} and are left out."
    if other_sets:
        sets = " and ".join(map(set_title, sorted(other_sets)))
        notes.append(f"Trained on {sets} in place of CIFAR: {left_out.format('other data')}")
    size = f"{IMAGE_SIZE} x {IMAGE_SIZE}"
    notes += [f"Trained on images of {n} x {n}: {left_out.format(size)}" for n in other_sizes]
    paper = {} if other_sets or other_sizes else declared["paper"]
    measured = {key for record in used.values() for key in keys_of(record)}
    blocks = []
    for title, keys, starts in declared["blocks"]:
        more = {key for key in measured if key.startswith(tuple(starts))} - set(keys)
        fixed = [key for key in keys if key in measured or not other_sets]
        blocks.append((title, [*fixed, *sorted(more, key=natural)]))
    keys = [key for _, found in blocks for key in found]
    rows, not_run = [], list[str]()
    for model, *every in declared["rows"]:
        own = tuple(experiment for experiment in every if experiment in experiments)
        printed = paper.get(declared.get("held_against", {}).get(model, model), {})
        lines = [own] if own or printed else []  # without experiments it is quoted
        if other_sets:  # which stand in for both CIFARs
            lines = [(experiment,) for experiment in own]
        for line in lines:
            found = [used.get(experiment, {}) for experiment in line]
            texts = [about.about(scale, record) for record in found] or [{"runs": about.QUOTED}]
            numbers = {key: cell(key, Number(*printed.get(key, [])), found) for key in keys}
            shown = about.shown_name(model, found[0]) if found else model
            if used and not printed and line and not any(found):
                not_run.append(shown)  # a row without any number
            else:
                rows.append(Row(shown, line, joint(texts), numbers))
    if not_run:
        notes.append(f"Not run at scale {scale}: {'; '.join(not_run)}.")
    return Table(name, scale, declared["title"], blocks, rows, notes)


def starts_of(name: str) -> tuple[str, ...]:
    """Return how the keys of the table's numbers begin."""
    return tuple(start for *_, starts in TABLES[name]["blocks"] for start in starts)


def joint(texts: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Say where the row of CIFAR-100, the second text, was made differently."""
    found = {key: [text.get(key, "-") for text in texts] for key in about.COLUMNS}
    return {
        key: "; CIFAR-100: ".join(dict.fromkeys(each))
        for key, each in found.items()
        if any(key in text for text in texts)
    }


def cell(key: str, paper: Number, records: Sequence[Record]) -> Number:
    """Return the mean over seeds beside the paper's number; of two records one is CIFAR-100's."""
    if not records:
        return replace(paper, state="" if paper.paper is None else about.QUOTED)
    ours = measured(records[key.endswith("/cifar100") and len(records) > 1], key)
    return replace(ours, paper=paper.paper, paper_std=paper.paper_std)


def measured(record: Record, key: str) -> Number:
    """Return the mean over the finished seeds that have the number, or why there is none."""
    if not record:
        return Number(state=about.NOT_RUN)
    seeds = list(finished_seeds(record).values())
    if not seeds:
        return Number(state=about.states(record))
    found = [seed for seed in seeds if key in values_of(seed)]
    if key == "ms_per_step" and len({each for seed in found for each in seed["devices"]}) > 1:
        return Number(state=DEVICES)
    if found:
        return mean_of([values_of(seed)[key] for seed in found])
    kind, _, out = key.rpartition("/")
    if kind.split("/")[0] in OF_SAMPLES and any(k.startswith(f"{kind}/") for k in keys_of(record)):
        return Number(state=OTHER_FEATURES)
    answers = [answer for seed in seeds for answer in seed["answers"].values()]
    skipped = any(out in answer.get("skipped", ()) for answer in answers)
    return Number(state=NO_DATA if skipped else NOT_ASKED)


def mean_of(values: Sequence[float]) -> Number:
    std = statistics.stdev(values) if len(values) > 1 else None
    return Number(mean=statistics.fmean(values), std=std, n=len(values))


def values_of(seed: Seed) -> dict[str, float]:
    """Return the numbers of all answers, of two with one key the first's; rates in percent where
    their columns are."""
    found: dict[str, float] = {}
    for answer in seed["answers"].values():
        found = answer["numbers"] | found
    return {key: 100 * n if key.split("/")[0] in PERCENT else n for key, n in found.items()}


def keys_of(record: Record) -> set[str]:
    return {key for seed in finished_seeds(record).values() for key in values_of(seed)}
