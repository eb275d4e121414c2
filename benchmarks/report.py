"""The measurements as Markdown and as one picture. `found` is the content of bench.json."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.flags import PARTS, PROJECT, STRAIGHT, STRAIGHT_TF32
from runs.style import COLOURS, STYLE, new_figure

Row = dict[str, Any]
BUSY = 0.5  # load average, before the benchmark, of a machine that does something else
BY = {"contrast_k": "K, slots of the queue", "n_steps": "SGLD steps", "batch_size": "batch size"}


def markdown(found: Row, picture: str = "bench.png") -> str:
    """Return the whole page."""
    pieces = [header(found)]
    for section, (title, tables) in TABLES.items():
        if found.get(section):
            pieces += [f"## {title}", *tables(found[section])]
    pieces += [f"![{title}]({name})" for name, title in (found.get("pictures") or {}).items()]
    if found.get("picture"):
        pieces.append(f"![the same as curves and bars]({picture})")
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


def parts(rows: Sequence[Row]) -> list[str]:
    head = ["ms", *(f"{row['terms']}, {row['contender']}" for row in rows)]
    lines = [[part, *(ms(row["parts"][part]) for row in rows)] for part in PARTS]
    shares = [percent(row["sampling_share"]) for row in rows]
    return [table(head, [*lines, ["share of the peak while sampling", *shares]])]


def curves(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each size that grows, by what grows."""
    return {by: [row for row in rows if row["by"] == by] for by in BY}


def growth(rows: Sequence[Row]) -> list[str]:
    pieces = []
    for by, some in curves(rows).items():
        if some:
            batch = "" if by == "batch_size" else f", batch {some[0]['batch_size']}"
            head = [f"{BY[by]} ({some[0]['terms']}{batch})", *(f"{row['value']:,}" for row in some)]
            lines = [[f"{n}, ms", *(ms(row[n]) for row in some)] for n in (PROJECT, STRAIGHT)]
            ratios = [figures(row["ratio"]) for row in some]
            pieces.append(table(head, [*lines, ["ratio", *ratios]]))
    return pieces


def queue(rows: Sequence[Row]) -> list[str]:
    head = ["classes", "project, ms", "straightforward, ms", "ratio", "project, extra MiB",
            "straightforward, extra MiB"]  # fmt: skip
    lines = [
        [
            *(str(row["classes"]), ms(row[PROJECT]), ms(row[STRAIGHT]), figures(row["ratio"])),
            *(mib(row["memory"].get(name)) for name in (PROJECT, STRAIGHT)),
        ]
        for row in rows
    ]
    size = f"K = {rows[0]['contrast_k']:,}, batch {rows[0]['batch_size']}"
    return [f"Forward, backward and enqueue; {size}.", table(head, lines)]


def images(rows: Sequence[Row]) -> list[str]:
    head = ["images", "project, ms", "PIL, one core, ms", "ratio"]
    lines = [
        [str(row["batch_size"]), ms(row[PROJECT]), ms(row[STRAIGHT]), figures(row["ratio"])]
        for row in rows
    ]
    return [table(head, lines)]


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


def answers_of(found: Row) -> tuple[str, list[list[str]]]:
    """Return what was trained, and a line for each number that it was asked for."""
    s, answers = found["settings"], found["answers"]
    last = found["progress"][-1] if found["progress"] else {"epoch": -1, "step": 0, "seconds": 0}
    ran = (
        f"@{s['recipe']}, WRN-{s['depth']}-{s['width']} on {s['dataset']}, batch "
        f"{s['batch_size']}: {int(last['step']):,} steps, to epoch {int(last['epoch']) + 1} of "
        f"{s['n_epochs']}, {float(last['seconds']):.0f} s, one seed."
    )
    asked = (("test_clf", "accuracy", "test accuracy"), ("eval_ece", "ece", "ECE"))
    lines = [
        [name, f"{100 * answer[key]:.2f} %", str(answer["n"])]
        for question, key, name in asked
        if key in (answer := answers.get(question, {}))
    ]
    asked_for = answers.get("cond_samples", {})
    for name, share in asked_for.get("read_as_asked", {}).items():
        if name in ("samples", "starts"):
            named = f"class-conditional {name} that are read as asked"
            lines.append([named, f"{100 * share:.1f} %", str(asked_for["n"])])
    for row in answers.get("OOD", {}).get("rows", []):
        named = f"AUROC of {row['score_fn']} against {row['ood_dataset']}"
        lines.append([named, f"{row['auroc']:.3f}", str(row["n_out"])])
    return ran, [["question", "answer", "images"], *lines]


def training(found: Row) -> list[str]:
    """Return the run's settings, its answers, and FID over the length of a chain."""
    answers = found["answers"]
    ran, (head, *lines) = answers_of(found)
    pieces = [ran, table(head, lines)]
    if rows := answers.get("fid", {}).get("rows"):
        head_of_fid = ["images", "steps", "FID", "precision", "recall"]
        pieces.append(table(head_of_fid, [
            [
                *(row["images"], "-" if row["steps"] is None else str(row["steps"])),
                *(figures(row["fid"]), f"{row['precision']:.2f}", f"{row['recall']:.2f}"),
            ]
            for row in rows
        ]))  # fmt: skip
        pieces.append(
            "FID, precision and recall are in the features of a cross-entropy network that was "
            "trained here, and not comparable with a published FID."
        )
    left = [
        f"{name}: {answer['left_out']}" for name, answer in answers.items() if "left_out" in answer
    ]
    return [*pieces, *left]


def left_out(found: dict[str, str]) -> list[str]:
    return ["\n".join(f"- {what}: {why}" for what, why in found.items())]


TABLES: dict[str, tuple[str, Callable[[Any], list[str]]]] = {
    "steps": ("Whole steps", steps),
    "parts": ("Parts of a step", parts),
    "growth": ("How a step's cost grows", growth),
    "queue": ("The queue term alone", queue),
    "images": ("A batch of augmented images", images),
    # Of scripts/gpu.sh.
    "chain": ("A chain alone", chain),
    "profile": ("A step under the profiler", profile),
    "tests": ("The tests that need a GPU", tests),
    "training": ("A short training run", training),
    "left_out": ("Left out", left_out),
}


# --------------------------------------------------------------------------------------- picture

COLOUR = {PROJECT: COLOURS[0], STRAIGHT: COLOURS[1], STRAIGHT_TF32: COLOURS[4]}
MARKER = {PROJECT: "o", STRAIGHT: "s"}
PART_COLOURS = ("#ddcc77", "#88ccee", "#332288", "#cc6677", "#117733", "#882255", "#dddddd")  # Tol
WIDTH, HEIGHT, COLUMNS = 4.1, 3.3, 3  # inches of a panel; panels side by side


def save_picture(found: Row, path: Path) -> bool:
    """Write the PNG; return False where there is nothing to draw."""
    from matplotlib import rc_context
    from matplotlib.patches import Patch

    panels = [
        (draw, found[section])
        for section, draw in (("steps", step_bars), ("parts", part_bars), ("queue", queue_bars))
        if found.get(section)
    ]
    panels += [(curve, rows) for rows in curves(found.get("growth") or []).values() if rows]
    if not panels:
        return False
    columns, lines = min(len(panels), COLUMNS), -(-len(panels) // COLUMNS)
    with rc_context(STYLE):
        width = WIDTH * columns if len(panels) > 1 else 2.4 * WIDTH  # scripts/gpu.sh's many steps
        figure = new_figure(width, HEIGHT * lines + 0.3, w_pad=0.08, h_pad=0.08)
        grid = figure.subplots(lines, columns, squeeze=False)
        for axes, (draw, rows) in zip(grid.flat, panels, strict=False):
            draw(axes, rows)
        for axes in list(grid.flat)[len(panels) :]:
            axes.remove()
        s, place = found["settings"], found["environment"]
        figure.suptitle(f"WRN-{s['depth']}-{s['width']} on {place['device']}", fontsize=11)
        rows = [row for _, of_panel in panels for row in of_panel]
        timed = {row.get("contender") for row in rows}
        timed |= {name for row in rows for name in (PROJECT, STRAIGHT) if row.get(name) is not None}
        shown = [Patch(color=colour, label=n) for n, colour in COLOUR.items() if n in timed]
        figure.legend(handles=shown, loc="outside upper right", ncols=len(shown))
        figure.savefig(path, dpi=130, metadata={"Software": None})
    return True


def bars(axes: Any, groups: Sequence[Sequence[tuple[str, float, float]]]) -> None:
    """Draw a group of (contender, seconds, times the project's) beside another, with a ratio over
    each bar but the project's."""
    most = max(len(group) for group in groups)
    for i, group in enumerate(groups):
        for j, (name, seconds, ratio) in enumerate(group):
            x, y = i - 0.4 + (j + 0.5) * 0.8 / most, 1000 * seconds
            axes.bar(x, y, 0.8 / most, color=COLOUR[name])
            if name != PROJECT:
                upright = 90 if most > 2 else 0  # beside a higher bar there is no room
                axes.annotate(f"{figures(ratio)} ×", (x, y), (0, 2), ha="center", fontsize=8,
                              textcoords="offset points", rotation=upright)  # fmt: skip
    log_scale(axes, [1000 * seconds for group in groups for _, seconds, _ in group])


def step_bars(axes: Any, rows: Sequence[Row]) -> None:
    groups: dict[tuple[str, int], list[tuple[str, float, float]]] = {}
    for row in rows:
        bar = (row["contender"], row["seconds"], row["ratio"])
        groups.setdefault((row["terms"], row["classes"]), []).append(bar)
    bars(axes, list(groups.values()))
    first = rows[0]["classes"]
    ticks = [terms if classes == first else f"{terms}\nC = {classes}" for terms, classes in groups]
    ticks = [tick.replace("HDGE+JEM", "HDGE\n+JEM").replace(", ", ",\n") for tick in ticks]
    axes.set_xticks(range(len(groups)), ticks)
    axes.set(ylabel="ms a step", title=f"A training step, C = {first}")
    axes.tick_params(axis="x", labelsize=8.5)
    axes.set_ylim(top=4000 * max(row["seconds"] for row in rows))  # room for the ratios


def part_bars(axes: Any, rows: Sequence[Row]) -> None:
    """Stacked bars of the last terms, which have every part."""
    some = [row for row in rows if row["terms"] == rows[-1]["terms"]]
    left = [0.0] * len(some)
    for part, colour in zip(PARTS, PART_COLOURS, strict=True):
        widths = [1000 * row["parts"][part] for row in some]
        axes.barh(range(len(some)), widths, 0.55, left, color=colour, label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(some)), [row["contender"] for row in some], rotation=90, va="center")
    axes.set_ylim(len(some) - 0.5, -1.3)
    axes.set(xlabel="ms", title=f"Parts of a step, {some[0]['terms']}")
    axes.legend(ncols=2, loc="upper left", fontsize=8, columnspacing=1.0, handlelength=1.2)


def queue_bars(axes: Any, rows: Sequence[Row]) -> None:
    names = (PROJECT, STRAIGHT)
    bars(axes, [[(n, row[n], row["ratio"]) for n in names if row[n] is not None] for row in rows])
    axes.set_xticks(range(len(rows)), [f"C = {row['classes']}" for row in rows])
    size = f"K = {rows[0]['contrast_k']:,}, batch {rows[0]['batch_size']}"
    axes.set(ylabel="ms", title=f"The queue term alone, {size}")


def curve(axes: Any, rows: Sequence[Row]) -> None:
    times = []
    for name in (PROJECT, STRAIGHT):
        points = [(row["value"], 1000 * row[name]) for row in rows if row[name] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), MARKER[name] + "-", color=COLOUR[name])
            times += [y for _, y in points]
    axes.set(xscale="log", ylabel="ms a step", xlabel=BY[rows[0]["by"]])
    log_scale(axes, times)
    axes.set_xticks([row["value"] for row in rows], [f"{row['value']:,}" for row in rows])
    axes.xaxis.minorticks_off()
    axes.tick_params(axis="x", labelsize=8)
    batch = "" if rows[0]["by"] == "batch_size" else f", batch {rows[0]['batch_size']}"
    axes.set_title(f"{rows[0]['terms']}{batch}")
    axes.grid(alpha=0.3)


def log_scale(axes: Any, values: Sequence[float]) -> None:
    """From below the smallest value to above the largest, with plain numbers at 1, 2, 5, 10, ..."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_yscale("log")
    axes.set_ylim(min(values) / 2, max(values) * 2)
    wide = max(values) > 100 * min(values)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
