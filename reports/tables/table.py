"""Build a table from records: means over seeds, or the reason why there is no mean."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from reports.page.paper import image_size
from reports.tables import TABLES, about
from reports.tables.protocols import check_protocols
from reports.tables.records import Record, Seed, finished_seeds
from reports.tables.titles import OF_SAMPLES, PERCENT, natural, set_title
from runs.names import IMAGE_SIZE

NOT_ASKED, NO_DATA, DEVICES = "not asked", "no data", "several devices"
TIME = "ms_per_step"
OTHER_FEATURES = "other features"  # or another number of samples, each with a column of its own


@dataclass(frozen=True)
class Number:
    """The paper's number and ours, in percent where the column is. `std`: the sample standard
    deviation over n > 1 seeds. `state`: the reason where there is no mean."""

    paper: float | None = None
    paper_std: float | None = None
    mean: float | None = None
    std: float | None = None
    n: int = 0
    state: str = ""


@dataclass(frozen=True)
class Row:
    """A row of a table. `experiments`: empty for a quoted row; a second one is CIFAR-100's.
    `about`: a text for each of about.COLUMNS. `numbers`: by the columns' keys."""

    model: str
    experiments: tuple[str, ...]
    about: dict[str, str]
    numbers: dict[str, Number]


@dataclass(frozen=True)
class Table:
    """A table at one scale. `blocks`: each block's title and the keys of its columns."""

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
    table_records = {name: records[name] for name in experiments if name in records}
    subject = f"--results: {name} at scale {scale}"
    notes = [*declared["notes"], *check_protocols(subject, table_records, prefixes_of(name))]
    seeds = [seed for record in table_records.values() for seed in record.values()]
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
    measured_keys = {key for record in table_records.values() for key in keys_of(record)}
    blocks = []
    for title, declared_keys, prefixes in declared["blocks"]:
        more = {k for k in measured_keys if k.startswith(tuple(prefixes))} - set(declared_keys)
        always = [key for key in declared_keys if key in measured_keys or not other_sets]
        blocks.append((title, [*always, *sorted(more, key=natural)]))
    keys = [key for _, block_keys in blocks for key in block_keys]
    rows, not_run = [], list[str]()
    for model, *row_experiments in declared["rows"]:
        at_scale = tuple(e for e in row_experiments if e in experiments)
        printed = paper.get(declared.get("held_against", {}).get(model, model), {})
        lines = [at_scale] if at_scale or printed else []  # a row without experiments is quoted
        if other_sets:  # the same set stands in for both CIFARs: a line for each experiment
            lines = [(experiment,) for experiment in at_scale]
        for line in lines:
            line_records = [table_records.get(experiment, {}) for experiment in line]
            texts = [about.about(scale, r) for r in line_records] or [{"runs": about.QUOTED}]
            numbers = {key: cell(key, Number(*printed.get(key, [])), line_records) for key in keys}
            title = about.row_title(model, line_records[0]) if line_records else model
            if table_records and not printed and line and not any(line_records):
                not_run.append(title)  # a row without any number
            else:
                rows.append(Row(title, line, joint(texts), numbers))
    if not_run:
        notes.append(f"Not run at scale {scale}: {'; '.join(not_run)}.")
    return Table(name, scale, declared["title"], blocks, rows, [*notes, *timed_apart(rows)])


def devices_of(rows: Iterable[Row]) -> dict[str, list[str]]:
    """Return the devices on which the rows' steps were timed, each with its rows."""
    devices: dict[str, list[str]] = {}
    for row in rows:
        device = row.about.get("hardware", "-")
        if TIME in row.numbers and row.numbers[TIME].mean is not None and device != "-":
            devices.setdefault(device, []).append(row.model)
    return devices


def timed_apart(rows: Iterable[Row]) -> list[str]:
    """Return a note that names the devices, where the rows' steps were timed on several."""
    devices = sorted(devices_of(rows).items())
    note = "Times of a step on different devices do not compare, and no picture has them."
    texts = [f"{device}: {'; '.join(models)}." for device, models in devices]
    return [" ".join([note, *texts])] if len(devices) > 1 else []


def prefixes_of(name: str) -> tuple[str, ...]:
    """Return the prefixes of the keys of the table's numbers."""
    return tuple(prefix for *_, prefixes in TABLES[name]["blocks"] for prefix in prefixes)


def joint(texts: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Join the texts about a row's experiments; the second, of CIFAR-100, where it differs."""
    columns = {key: [text.get(key, "-") for text in texts] for key in about.COLUMNS}
    return {
        key: "; CIFAR-100: ".join(dict.fromkeys(column))
        for key, column in columns.items()
        if any(key in text for text in texts)
    }


def cell(key: str, paper: Number, records: Sequence[Record]) -> Number:
    """Return the mean over seeds beside the paper's number; a second record is CIFAR-100's."""
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
    measured_seeds = [seed for seed in seeds if key in values_of(seed)]
    if key == TIME and len({d for seed in measured_seeds for d in seed["devices"]}) > 1:
        return Number(state=DEVICES)
    if measured_seeds:
        return mean_of([values_of(seed)[key] for seed in measured_seeds])
    kind, _, dataset = key.rpartition("/")
    if kind.split("/")[0] in OF_SAMPLES and any(k.startswith(f"{kind}/") for k in keys_of(record)):
        return Number(state=OTHER_FEATURES)
    answers = [answer for seed in seeds for answer in seed["answers"].values()]
    skipped = any(dataset in answer.get("skipped", ()) for answer in answers)
    return Number(state=NO_DATA if skipped else NOT_ASKED)


def mean_of(values: Sequence[float]) -> Number:
    std = statistics.stdev(values) if len(values) > 1 else None
    return Number(mean=statistics.fmean(values), std=std, n=len(values))


def values_of(seed: Seed) -> dict[str, float]:
    """Return the numbers of all answers, in percent where their columns are. Where two answers have
    the same key, the first counts."""
    numbers: dict[str, float] = {}
    for answer in seed["answers"].values():
        numbers = answer["numbers"] | numbers
    return {key: 100 * n if key.split("/")[0] in PERCENT else n for key, n in numbers.items()}


def keys_of(record: Record) -> set[str]:
    return {key for seed in finished_seeds(record).values() for key in values_of(seed)}
