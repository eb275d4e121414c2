"""The measurements as Markdown. `found` is the content of bench.json."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from benchmarks.flags import PROJECT

Row = dict[str, Any]
BUSY = 0.5  # load average, before the benchmark, of a machine that does something else


def markdown(found: Row) -> str:
    """Return the whole page."""
    pieces = [header(found)]
    for section, (title, tables) in TABLES.items():
        if found.get(section):
            pieces += [f"## {title}", *tables(found[section])]
    pieces += [f"![{title}]({name})" for name, title in (found.get("pictures") or {}).items()]
    return "\n\n".join(pieces) + "\n"


def header(found: Row) -> str:
    """Return where and how it was measured."""
    s, place = found["settings"], found["environment"]
    packages = ", ".join(f"{name} {place['packages'][name]}" for name in ("torchvision", "numpy"))
    peaks = ", ".join(
        f"{figures(rate / 1e12)} ({name})" for name, rate in (found.get("peaks") or {}).items()
    )
    load = found.get("load") or 0.0  # None: the system does not tell
    rehearsed = "- **A rehearsal on the CPU**: its times are no results"
    busy = (
        f"- **The machine was busy** (load average {load:.1f} before it began): these times are no "
        "results"
    )
    return "\n".join([
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
        *machine(found),
        f"- Medians; it took {found['seconds'] / 60:.1f} minutes",
        *([busy] if load > BUSY else []),
        *([rehearsed] if found.get("rehearsed") else []),
        *unfinished(found.get("parts_of_it") or {}),
    ])  # fmt: skip


def unfinished(parts: Row) -> list[str]:
    """Return a line about each part of scripts/gpu.sh that did not end well."""
    codes = ((name, part["exit_code"]) for name, part in parts.items() if part["exit_code"] != 0)
    return [
        f"- The part `{name}` " + (code if isinstance(code, str) else f"ended with code {code}")
        for name, code in codes
    ]


def machine(found: Row) -> list[str]:
    """Return the lines about the GPU, where scripts/gpu.sh has asked it."""
    lines = []
    if about := found.get("machine"):
        lines.append(
            f"- {about['memory'] / 2**30:.0f} GiB, {about['multiprocessors']} multiprocessors, "
            f"driver {about['driver']}, CUDA {about['cuda']}, cuDNN {about['cudnn']}"
        )
    if rate := found.get("copy_bytes_per_s"):
        lines.append(f"- A copy within memory: {figures(rate / 1e12)} TB/s, read and written")
    return lines


def speed(found: Row) -> str:
    """Return the project's steps as the table of README.md, and where they were measured."""
    head = ["step", "ms", "images/s", "share of the peak", "GiB above its state"]
    rows = [row for row in found.get("steps", []) if row["contender"] == PROJECT]
    lines = [
        [
            f"{row['terms']}, C = {row['classes']}",
            *(ms(row["seconds"]), figures(row["images_per_s"])),
            *(f"{percent(row['share'])} of {row['format']}", figures(row["memory"], 2**-30)),
        ]
        for row in rows
    ]
    s, place = found["settings"], found["environment"]
    where = (
        f"WRN-{s['depth']}-{s['width']}, batch {s['batch_size']}, on {place['device']}, torch "
        f"{place['torch_build']}: [the whole record](benchmarks/gpu/gpu.md)."
    )
    return f"{table(head, lines)}\n\n{where}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; all columns but the first are right-aligned."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figures(value: float | None, times: float = 1) -> str:
    """Return three digits, and no exponent for numbers that occur here."""
    if value is None:
        return "-"
    value *= times
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2 if value >= 0.995 else None
    return f"{value:.3g}" if digits is None else f"{value:,.{digits}f}"


ms, mib = partial(figures, times=1e3), partial(figures, times=2**-20)


def percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def steps(rows: Sequence[Row]) -> list[str]:
    head = ["terms", "classes", "step", "ms", "quartiles", "images/s", "times the project's",
            "TFLOP", "share of the peak", "memory above its state, MiB"]  # fmt: skip
    lines = [
        [
            *(row["terms"], str(row["classes"]), row["contender"]),
            *(ms(row["seconds"]), f"{ms(row['low'])} to {ms(row['high'])}"),
            *(figures(row["images_per_s"]), figures(row["ratio"])),
            *(figures(row["flop"] / 1e12), f"{percent(row['share'])} of {row['format']}"),
            mib(row["memory"]),
        ]
        for row in rows
    ]
    above = "Shares above 100 %: convolutions run faster than that matrix product here."
    compiled = [
        f"The first step of {row['terms']} took {figures(row['first'])} s."
        for row in rows
        if "first" in row
    ]
    over = [above] if any(row["share"] > 1 for row in rows) else []
    return [table(head, lines), *compiled, *over]


def chain(rows: Sequence[Row]) -> list[str]:
    head = ["a chain", "SGLD steps", "ms", "TFLOP/s", "first call, s"]
    lines = [
        [
            *(row["way"], str(row["steps"]), ms(row["seconds"])),
            *(figures(row["flop"] / row["seconds"] / 1e12), figures(row["first"])),
        ]
        for row in rows
    ]
    return [table(head, lines)]


def profile(rows: Sequence[Row]) -> list[str]:
    pieces = []
    for row in rows:
        idle = "" if row["idle"] is None else f"; the GPU is idle for {percent(row['idle'])} of it"
        waits = "" if row["waits"] is None else f"; the host waits {row['waits']} times"
        pieces.append(
            f"{row['terms']}: {ms(row['span'])} ms under the profiler, {row['launches']:,} kernels"
            f"{idle}{waits}."
        )
        lines = [
            [f"`{kernel['name'][:90]}`", str(kernel["calls"]), percent(kernel["share"])]
            for kernel in row["kernels"]
        ]
        pieces.append(table(["kernel", "calls", "share of the kernels' time"], lines))
    return pieces


def tests(found: Row) -> list[str]:
    passed = found["tests"] - sum(found[kind] for kind in ("failures", "errors", "skipped"))
    failed = f": {', '.join(found['failed'])}" if found["failed"] else ""
    return [
        f"{passed} passed, {found['failures'] + found['errors']} failed, {found['skipped']} "
        f"skipped{failed}."
    ]


def training(lines: Sequence[Sequence[str]]) -> list[str]:
    """Return the run's settings and numbers, as scripts/tables.py compares runs."""
    return [
        table(["", "M-JEM"], lines),
        "FID, precision and recall are in the features of a cross-entropy network that was trained "
        "here, and not comparable with a published FID.",
    ]


def left_out(found: dict[str, str]) -> list[str]:
    return ["\n".join(f"- {what}: {why}" for what, why in found.items())]


TABLES: dict[str, tuple[str, Callable[[Any], list[str]]]] = {
    "steps": ("Whole steps", steps),
    # Of scripts/gpu.sh.
    "chain": ("A chain alone", chain),
    "profile": ("A step under the profiler", profile),
    "tests": ("The tests that need a GPU", tests),
    "summary": ("A short training run", training),
    "left_out": ("Left out", left_out),
}
