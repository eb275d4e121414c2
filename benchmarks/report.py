"""What was measured, as Markdown."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from benchmarks.contenders import PROJECT, STRAIGHT
from benchmarks.measure import PARTS

Row = dict[str, Any]
BUSY = 0.5  # load average, before the benchmark, of a machine that does something else
BY = {"contrast_k": "K, slots of the queue", "n_steps": "SGLD steps", "batch_size": "batch size"}


def markdown(found: Row) -> str:
    """The whole page; `found` is what bench.json holds."""
    tables = {
        "steps": ("Whole steps", steps),
        "parts": ("Parts of a step", parts),
        "growth": ("How a step's cost grows", growth),
        "queue": ("The queue term alone", queue),
        "images": ("A batch of augmented images", images),
    }
    pieces = [header(found)]
    for section, (title, table) in tables.items():
        if found.get(section):
            pieces.append(f"## {title}\n\n{table(found[section])}")
    if found.get("picture"):
        pieces.append("![the same as curves and bars](bench.png)")
    return "\n\n".join(pieces) + "\n"


def header(found: Row) -> str:
    """Where it was measured, and how."""
    s, place = found["settings"], found["environment"]
    packages = ", ".join(f"{name} {place['packages'][name]}" for name in ("torchvision", "numpy"))
    peaks = ", ".join(f"{figures(rate / 1e12)} ({name})" for name, rate in found["peaks"].items())
    lines = [
        "# Speed of a training step",
        "",
        "    " + shlex.join(s["command"]),
        "",
        f"- {place['device']}, {place['threads']} threads; {place['platform']}",
        f"- Python {place['python']}, torch {place['torch_build']}, {packages}; "
        f"commit {place['git_commit']}",
        f"- WRN-{s['depth']}-{s['width']}, batch {s['batch_size']}, K = {s['contrast_k']}, "
        f"{s['n_steps']} SGLD steps; --amp {s['amp']}, --compile {s['compile']}",
        f"- Matrix products of {s['matrix']} x {s['matrix']}, TFLOP/s: {peaks or 'not measured'}",
        f"- Medians; it took {found['seconds'] / 60:.1f} minutes",
    ]
    if found["load"] is not None and found["load"] > BUSY:
        lines.append(
            f"- **The machine was busy** (load average {found['load']:.1f} before it began): "
            "these times are no results"
        )
    return "\n".join(lines)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; all columns but the first are right-aligned."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figures(value: float | None) -> str:
    """Three digits, and no exponent for what occurs here."""
    if value is None:
        return "-"
    if value >= 99.95:
        return f"{value:,.0f}"
    return (
        f"{value:.1f}" if value >= 9.995 else f"{value:.2f}" if value >= 0.995 else f"{value:.3g}"
    )


def percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def ms(seconds: float | None) -> str:
    return figures(None if seconds is None else 1000 * seconds)


def mib(size: float | None) -> str:
    return figures(None if size is None else size / 2**20)


def steps(rows: Sequence[Row]) -> str:
    head = ["terms", "classes", "step", "ms", "quartiles", "images/s", "times the project's",
            "TFLOP", "share of the peak", "memory above its state, MiB"]  # fmt: skip
    page = table(
        head,
        [
            [
                *(row["terms"], str(row["classes"]), row["contender"]),
                *(ms(row["seconds"]), f"{ms(row['low'])} to {ms(row['high'])}"),
                *(figures(row["images_per_s"]), figures(row["ratio"])),
                *(figures(row["flop"] / 1e12), f"{percent(row['share'])} of {row['format']}"),
                mib(row["memory"]),
            ]
            for row in rows
        ],
    )
    if any(row["share"] > 1 for row in rows):
        page += "\n\nShares above 100 %: convolutions run faster than that matrix product here."
    return page


def parts(rows: Sequence[Row]) -> str:
    head = ["ms", *(f"{row['terms']}, {row['contender']}" for row in rows)]
    lines = [[part, *(ms(row["parts"][part]) for row in rows)] for part in PARTS]
    shares = [row["sampling_share"] for row in rows]
    lines.append(["share of the peak while sampling", *map(percent, shares)])
    return table(head, lines)


def growth(rows: Sequence[Row]) -> str:
    pieces = []
    for by in dict.fromkeys(row["by"] for row in rows):
        some = [row for row in rows if row["by"] == by]
        batch = "" if by == "batch_size" else f", batch {some[0]['batch_size']}"
        head = [f"{BY[by]} ({some[0]['terms']}{batch})", *(f"{row['value']:,}" for row in some)]
        lines = [[f"{name}, ms", *(ms(row[name]) for row in some)] for name in (PROJECT, STRAIGHT)]
        lines.append(["ratio", *(figures(row["ratio"]) for row in some)])
        pieces.append(table(head, lines))
    return "\n\n".join(pieces)


def queue(rows: Sequence[Row]) -> str:
    head = ["classes", "project, ms", "straightforward, ms", "ratio", "project, extra MiB",
            "straightforward, extra MiB"]  # fmt: skip
    lines = [
        [
            *(str(row["classes"]), ms(row[PROJECT]), ms(row[STRAIGHT]), figures(row["ratio"])),
            *(mib(row["memory"].get(name)) for name in (PROJECT, STRAIGHT)),
        ]
        for row in rows
    ]
    size = f"Forward, backward and enqueue; K = {rows[0]['contrast_k']:,}, "
    return f"{size}batch {rows[0]['batch_size']}.\n\n{table(head, lines)}"


def images(rows: Sequence[Row]) -> str:
    head = ["images", "project, ms", "PIL, one core, ms", "ratio"]
    lines = [
        [str(row["batch_size"]), ms(row[PROJECT]), ms(row[STRAIGHT]), figures(row["ratio"])]
        for row in rows
    ]
    return table(head, lines)
