"""Any runs side by side: what differs in their settings, what they cost, what they reached."""

from __future__ import annotations

from collections.abc import Mapping

from reports.page.markup import number
from reports.page.paper import SCORES
from reports.tables.about import about, commits, devices, divergences, joined, network
from reports.tables.cells import Built, Line, cell, keys_of
from reports.tables.layout import Layout
from reports.tables.protocols import check_protocols
from reports.tables.records import Record
from reports.tables.titles import PERCENT, column_title, digits, natural
from runs.screen import markdown

FAMILIES = (
    *("accuracy", "ece_accuracy", "ece", "auroc", "hist", "fid", "is", "robust", "samples"),
    "ms_per_step",
)
SHOWN_BY_NETWORK = ("arch", "depth", "width")


def comparison(runs: Mapping[str, Record]) -> str:
    """A Markdown table with a column a run (label -> its record, of one seed).

    Settings that all runs share are left out. Raises UsageError where the runs' numbers are of
    different protocol versions.
    """
    notes = notes_on(as_finished(runs))
    rows: list[dict[str, str]] = []

    def add(title: str, values: Mapping[str, object]) -> None:
        rows.append(
            {"what": title, **{f"r{i}": str(values[label]) for i, label in enumerate(runs)}}
        )

    add("network", {label: network(record) for label, record in runs.items()})
    names = sorted({name for record in runs.values() for name in record["settings"]})
    for name in names:
        found = {label: record["settings"].get(name, "-") for label, record in runs.items()}
        same = len({str(value) for value in found.values()}) == 1
        if name not in SHOWN_BY_NETWORK and (not same or name == "dataset"):
            add(f"--{name}", found)
    add("state", {label: record["state"] for label, record in runs.items()})
    add("epochs", {label: record["epochs"] for label, record in runs.items()})
    add("steps", {label: record["steps"] for label, record in runs.items()})
    hours = {label: _hours(record) for label, record in runs.items()}
    add("hours", hours)
    add("images a second", {label: _rate(record) for label, record in runs.items()})
    add("hardware", {label: joined(devices(record)) for label, record in runs.items()})
    add("commit", {label: joined(commits(record)) for label, record in runs.items()})
    numbers = {label: _numbers(record) for label, record in runs.items()}
    keys = {key for found in numbers.values() for key in found if key.split("/")[0] in FAMILIES}
    for key in sorted(keys, key=lambda key: (FAMILIES.index(key.split("/")[0]), natural(key))):
        add(_title(key), {label: found.get(key, "-") for label, found in numbers.items()})
    headers = {"what": "", **{f"r{i}": label for i, label in enumerate(runs)}}
    table = markdown(rows, list(headers), headers=headers)
    return "\n".join([table, *(["", *notes] if notes else [])]) + "\n"


def compared(runs: Mapping[str, Record]) -> Built:
    """The numbers of the same runs as a table with a line a run and a block a kind of number."""
    records = as_finished(runs)
    keys = {key for record in records.values() for key in keys_of(record)}
    blocks: dict[str, list[str]] = {}
    for key in sorted(keys, key=natural):
        family = key.split("/")[0]
        if family in FAMILIES:
            blocks.setdefault(_block(key), []).append(key)
    ordered = sorted(blocks.items(), key=lambda b: FAMILIES.index(b[1][0].split("/")[0]))
    shown = [key for _, found in ordered for key in found]
    lines = [
        Line(
            label,
            label,
            {**about("runs", label, record), "runs": state(runs[label])},
            {key: cell(key, None, label, record) for key in shown},
        )
        for label, record in records.items()
    ]
    return Built("comparison", "runs", Layout("Comparison", ()), ordered, lines, notes_on(records))


def as_finished(runs: Mapping[str, Record]) -> dict[str, Record]:
    """Each as a record of one seed whose numbers are shown however it ended."""
    return {
        label: {"seeds": {"": {**record, "state": "finished"}}} for label, record in runs.items()
    }


def notes_on(records: Mapping[str, Record]) -> list[str]:
    return check_protocols("compare", "of these folders", records, ("",))


def state(record: Record) -> str:
    """How the run ended, and how often it has diverged if that does not tell."""
    again = int(record.get("divergences") or 0)
    return ", ".join([record["state"], *divergences(again, told=record["state"] == "diverged")])


def _block(key: str) -> str:
    family, _, rest = key.partition("/")
    if family in ("auroc", "hist"):
        score = rest.partition("/")[0]
        where = " of the histogram" if family == "hist" else ""
        return f"AUROC, {SCORES.get(score, score)}{where}"
    if family == "robust":
        return f"Accuracy (%) under attack, {rest.partition('/')[0]} radius"
    return {
        **{"accuracy": "Accuracy", "ece_accuracy": "Calibration", "ece": "Calibration"},
        **{"fid": "Samples", "is": "Samples", "samples": "Samples drawn"},
        "ms_per_step": "Cost of a training step",
    }[family]


def _numbers(record: Record) -> dict[str, str]:
    found = {}
    for answer in record["answers"].values():
        for key, raw in answer["numbers"].items():
            value = number(raw)
            if value is not None:
                factor = 100 if key.split("/")[0] in PERCENT else 1
                found[key] = f"{factor * value:.{digits(key)}f}"
    return found


def _title(key: str) -> str:
    family, _, rest = key.partition("/")
    title = column_title(key)
    if family == "auroc":
        return f"AUROC {rest.partition('/')[0]}, {title}"
    if family == "hist":
        return f"AUROC {rest.partition('/')[0]} of the histogram, {title}"
    if family == "robust":
        return f"accuracy under attack, {rest.partition('/')[0]} {title} (%)"
    return f"{title} (calibration)" if family == "ece_accuracy" else title


def _hours(record: Record) -> str:
    seconds = number(record["seconds"])
    return "-" if seconds is None else f"{seconds / 3600:.2f}"


def _rate(record: Record) -> str:
    speed = number(record["images_per_s"])
    return "-" if speed is None else f"{speed:.0f}"
