"""What was measured, as one picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.contenders import PROJECT, STRAIGHT, STRAIGHT_TF32
from benchmarks.measure import PARTS
from benchmarks.report import BY, figures
from runs.style import COLOURS, STYLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]
COLOUR = {PROJECT: COLOURS[0], STRAIGHT: COLOURS[1], STRAIGHT_TF32: COLOURS[4]}
MARKER = {PROJECT: "o", STRAIGHT: "s"}
PART_COLOURS = ("#ddcc77", "#88ccee", "#332288", "#cc6677", "#117733", "#882255", "#dddddd")  # Tol
WIDTH, HEIGHT, COLUMNS = 4.1, 3.3, 3  # inches of a panel; panels side by side


def save_picture(found: Row, path: Path) -> bool:
    """Write the PNG; False where there is nothing to draw. `found` is what bench.json holds."""
    from matplotlib import rc_context

    panels: list[Callable[[Any], None]] = []
    if found.get("steps"):
        panels.append(lambda axes: steps(axes, found["steps"]))
    if found.get("parts"):
        panels.append(lambda axes: parts(axes, found["parts"]))
    if found.get("queue"):
        panels.append(lambda axes: queue(axes, found["queue"]))
    grown = found.get("growth") or []
    for by in dict.fromkeys(row["by"] for row in grown):
        some = [row for row in grown if row["by"] == by]
        panels.append(lambda axes, some=some: growth(axes, some))  # type: ignore[misc]
    if not panels:
        return False
    with rc_context(STYLE):
        figure = _figure(min(len(panels), COLUMNS), -(-len(panels) // COLUMNS))
        grid = figure.subplots(-(-len(panels) // COLUMNS), min(len(panels), COLUMNS), squeeze=False)
        for axes, draw in zip(grid.flat, panels, strict=False):
            draw(axes)
        for axes in list(grid.flat)[len(panels) :]:
            axes.remove()
        s, place = found["settings"], found["environment"]
        figure.suptitle(f"WRN-{s['depth']}-{s['width']} on {place['device']}", fontsize=11)
        _legend(figure, found)
        figure.savefig(path, dpi=130, metadata={"Software": None})
    return True


def _figure(columns: int, rows: int) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH * columns, HEIGHT * rows + 0.3))
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
    FigureCanvasAgg(figure)
    return figure


def steps(axes: Any, rows: Sequence[Row]) -> None:
    """Bars in groups, the ratio to the project's step over each."""
    groups = list(dict.fromkeys((row["terms"], row["classes"]) for row in rows))
    names = list(dict.fromkeys(row["contender"] for row in rows))
    width = 0.8 / len(names)
    for row in rows:
        x = groups.index((row["terms"], row["classes"])) - 0.4
        x += (names.index(row["contender"]) + 0.5) * width
        y = 1000 * row["seconds"]
        axes.bar(x, y, width, color=COLOUR[row["contender"]])
        if row["contender"] != PROJECT:
            upright = 90 if len(names) > 2 else 0  # beside a higher bar there is no room
            axes.annotate(f"{figures(row['ratio'])} ×", (x, y), (0, 2), ha="center", fontsize=8,
                          textcoords="offset points", rotation=upright)  # fmt: skip
    first = groups[0][1]
    ticks = [terms if classes == first else f"{terms}\nC = {classes}" for terms, classes in groups]
    axes.set_xticks(range(len(groups)), [tick.replace("HDGE+JEM", "HDGE\n+JEM") for tick in ticks])
    axes.set(ylabel="ms a step", title=f"A training step, C = {first}")
    axes.tick_params(axis="x", labelsize=8.5)
    _log_scale(axes, [1000 * row["seconds"] for row in rows])
    axes.set_ylim(top=4000 * max(row["seconds"] for row in rows))  # room for the ratios


def parts(axes: Any, rows: Sequence[Row]) -> None:
    """Stacked bars: the last terms, which have every part."""
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


def queue(axes: Any, rows: Sequence[Row]) -> None:
    names = [name for name in (PROJECT, STRAIGHT) if rows[0][name] is not None]
    for i, row in enumerate(rows):
        for j, name in enumerate(names):
            if row[name] is None:
                continue
            x, y = i - 0.4 + (j + 0.5) * 0.8 / len(names), 1000 * row[name]
            axes.bar(x, y, 0.8 / len(names), color=COLOUR[name])
            if name != PROJECT:
                axes.annotate(f"{figures(row['ratio'])} ×", (x, y), (0, 2), ha="center", fontsize=8,
                              textcoords="offset points")  # fmt: skip
    axes.set_xticks(range(len(rows)), [f"C = {row['classes']}" for row in rows])
    size = f"K = {rows[0]['contrast_k']:,}, batch {rows[0]['batch_size']}"
    axes.set(ylabel="ms", title=f"The queue term alone, {size}")
    _log_scale(axes, [1000 * row[name] for row in rows for name in names if row[name]])


def growth(axes: Any, rows: Sequence[Row]) -> None:
    names = [name for name in (PROJECT, STRAIGHT) if any(row[name] is not None for row in rows)]
    for name in names:
        points = [(row["value"], 1000 * row[name]) for row in rows if row[name] is not None]
        axes.plot(*zip(*points, strict=True), marker=MARKER[name], color=COLOUR[name], label=name)
    values = [row["value"] for row in rows]
    axes.set(xscale="log", ylabel="ms a step", xlabel=BY[rows[0]["by"]])
    _log_scale(axes, [1000 * row[name] for row in rows for name in names if row[name]])
    axes.set_xticks(values, [f"{value:,}" for value in values])
    axes.xaxis.minorticks_off()
    axes.tick_params(axis="x", labelsize=8)
    batch = "" if rows[0]["by"] == "batch_size" else f", batch {rows[0]['batch_size']}"
    axes.set_title(f"{rows[0]['terms']}{batch}")
    axes.grid(alpha=0.3)


def _log_scale(axes: Any, values: Sequence[float]) -> None:
    """From below the smallest value to above the largest, with plain numbers at 1, 2, 5, 10, ..."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_yscale("log")
    axes.set_ylim(min(values) / 2, max(values) * 2)
    wide = max(values) > 100 * min(values)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def _legend(figure: Figure, found: Row) -> None:
    """One for all panels but the parts', which has its own."""
    from matplotlib.patches import Patch

    timed = {row["contender"] for row in (*found.get("steps", ()), *found.get("parts", ()))}
    for row in (*found.get("growth", ()), *found.get("queue", ())):
        timed |= {name for name in (PROJECT, STRAIGHT) if row[name] is not None}
    shown = [Patch(color=colour, label=name) for name, colour in COLOUR.items() if name in timed]
    figure.legend(handles=shown, loc="outside upper right", ncols=len(shown))
