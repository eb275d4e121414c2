"""Draw a picture of each table, our numbers beside the paper's or as curves. Copy the evaluations'
own pictures to the folder of the records."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reports.tables import TABLES
from reports.tables.records import write
from reports.tables.table import TIME, Number, Row, Table, devices_of
from reports.tables.titles import PERCENT, column_title, digits, natural
from runs.style import BUDGETS, COLOURS, MARKERS, STYLE, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OURS, PAPER = COLOURS[0], COLOURS[1]
PER_ROW = 5  # panels


def save_picture(table: Table, path: Path) -> bool:
    """Write the PNG, with the same bytes for the same table. Return False where it would compare
    nothing: fewer than two rows, of ours and of the paper's together, have a number."""
    from matplotlib import rc_context

    draw = {"dots": dots, "curves": curves, "robustness": robustness, "none": None}[
        TABLES.get(table.name, {}).get("picture", "dots")
    ]
    keys = [key for _, block_keys in drawn(table, paper=True) for key in block_keys]
    rows = [[row.numbers[key] for key in keys] for row in table.rows]
    ours = sum(any(n.mean is not None for n in numbers) for numbers in rows)
    papers = sum(any(n.paper is not None for n in numbers) for numbers in rows)
    if draw is None or ours + papers < 2:
        return False
    with rc_context(STYLE):
        file = io.BytesIO()
        # without matplotlib's version, which would change the bytes
        draw(table).savefig(file, format="png", dpi=130, metadata={"Software": None})
    write(path, file.getvalue())
    return True


def drawn(table: Table, *, paper: bool = False) -> list[tuple[str, list[str]]]:
    """Return the blocks and keys that have a number of ours or, with `paper`, of the paper's. Leave
    out times of a step on several devices, which a picture would compare."""
    left_out = TIME if len(devices_of(table.rows)) > 1 else None

    def is_drawn(key: str) -> bool:
        in_rows = any(has_number(row.numbers[key], paper) for row in table.rows)
        return in_rows and key != left_out

    blocks = [(title, list(filter(is_drawn, keys))) for title, keys in table.blocks]
    return [(title, keys) for title, keys in blocks if keys]


def has_number(number: Number, paper: bool) -> bool:
    return number.mean is not None or (paper and number.paper is not None)


def dots(table: Table) -> Figure:
    """Draw a panel for each column, with a line for each row: a filled circle with the standard
    deviation over seeds is ours, a diamond the paper's."""
    blocks = drawn(table, paper=True)
    keys = [key for _, block_keys in blocks for key in block_keys]
    lines = [row for row in table.rows if any(has_number(row.numbers[k], True) for k in keys)]
    panels = [  # a block begins a new row of panels
        [(title, key) for key in block_keys[i : i + PER_ROW]]
        for title, block_keys in blocks
        for i in range(0, len(block_keys), PER_ROW)
    ]
    columns = max(map(len, panels))
    height = len(panels) * (1.0 + 0.25 * len(lines)) + 0.4
    figure, grid = _figure(len(panels), columns, 2.9 + 2.0 * columns, height, sharey=True)
    shared: dict[str, list[Any]] = {}
    for axes_row, row in zip(grid, panels, strict=True):
        for axes, (title, key) in zip(axes_row, row, strict=False):
            _panel(axes, key, lines)
            if title.startswith("AUROC"):
                axes.set_xlabel(title)
                axes.axvline(0.5, color="#888888", linestyle=":", linewidth=1)  # chance
                shared.setdefault(title, []).append(axes)
        for axes in axes_row[len(row) :]:
            axes.remove()
    for group in shared.values():  # panels of one score have one range, so that they compare
        low = min(axes.get_xlim()[0] for axes in group)
        high = max(axes.get_xlim()[1] for axes in group)
        for axes in group:
            axes.set_xlim(max(-0.03, min(low, 0.45)), min(1.04, max(high, 0.55)))
    numbers = [line.numbers[key] for line in lines for key in keys]
    if any(number.paper is not None for number in numbers):  # else there are circles alone
        _legend(figure, any(number.mean is not None for number in numbers), table.scale)
    return figure


def _panel(axes: Any, key: str, lines: Sequence[Row]) -> None:
    """Draw one column, on a log axis where unbounded numbers span more than two decades."""
    diamond: dict[str, Any] = {"marker": "D", "markersize": 6, "fillstyle": "none", "color": PAPER}
    circle: dict[str, Any] = {"marker": "o", "markersize": 5, "capsize": 2.5, "color": OURS}
    numbers = [line.numbers[key] for line in lines]
    for y, number in enumerate(numbers):
        if number.paper is not None:
            axes.plot(number.paper, y, zorder=3, **diamond)
        if number.mean is not None:
            axes.errorbar(number.mean, y, xerr=number.std, zorder=4, **circle)
    values = [value for n in numbers for value in (n.mean, n.paper) if value is not None]
    bounded = digits(key) == 3 or key.split("/")[0] in PERCENT
    if not bounded and 0 < 100 * min(values) < max(values):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:,g}")
    else:
        axes.locator_params(axis="x", nbins=4)
    axes.set_title(textwrap.fill(column_title(key), 22))
    models = [line.model for line in lines]
    short = [m if len(m) <= 50 else m[:49] + "\N{HORIZONTAL ELLIPSIS}" for m in models]
    axes.set_yticks(range(len(lines)), short)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.grid(alpha=0.3)
    axes.margins(x=0.12)


def _legend(figure: Figure, ours: bool, scale: str) -> None:
    from matplotlib.lines import Line2D

    marks = [Line2D([], [], marker="D", color=PAPER, fillstyle="none", linestyle="", label="paper")]
    if ours:
        label = f"ours ({scale}): mean and standard deviation over seeds"
        marks.insert(0, Line2D([], [], marker="o", color=OURS, linestyle="", label=label))
    figure.legend(handles=marks, loc="outside upper right", ncols=2)


def curves(table: Table) -> Figure:
    """Draw a panel a block: mean and standard deviation of each column against the setting that the
    experiments vary. An experiment without a value of it is a horizontal line."""
    xlabel, x_of = TABLES[table.name]["curve"]
    ticks = [x for x in x_of.values() if x is not None]
    rows = [(x_of.get("".join(row.experiments)), row) for row in table.rows]
    blocks = drawn(table)
    figure, (grid,) = _figure(1, len(blocks), 4.3 * len(blocks) + 0.4, 3.6)
    for axes, (title, keys) in zip(grid, blocks, strict=True):
        for i, key in enumerate(keys):
            colour = COLOURS[i % len(COLOURS)] if len(keys) > 1 else "#444444"
            for number, row in ((row.numbers[key], row) for x, row in rows if x is None):
                if number.mean is not None:
                    axes.axhline(number.mean, color=colour, linestyle="--")
                    low, high = (number.mean + sign * (number.std or 0) for sign in (-1, 1))
                    axes.axhspan(low, high, color=colour, alpha=0.12, linewidth=0)
                    # The lines of all columns, in their colours, are one entry of the legend.
                    if row.model not in axes.get_legend_handles_labels()[1]:
                        axes.plot([], [], color="#444444", linestyle="--", label=row.model)
            name = "HDGE" if len(keys) == 1 else column_title(key)
            _curve(axes, [(x, row.numbers[key]) for x, row in rows if x is not None], i, name)
        if max(ticks) > 100:
            axes.set_xscale("log", base=2)
            axes.minorticks_off()
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.set(xlabel=xlabel, ylabel=column_title(keys[0]) if len(keys) == 1 else title)
        axes.grid(alpha=0.3)
        if len(keys) > 1 or None in x_of.values():
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8)
    return figure


def robustness(table: Table) -> Figure:
    """Draw accuracy against the attack's radius: a panel a distance, a line a model."""
    blocks = drawn(table)
    figure, (grid,) = _figure(1, len(blocks), 4.6 * len(blocks) + 0.3, 3.6)
    for axes, (_, keys) in zip(grid, blocks, strict=True):
        distance = keys[0].split("/")[1]
        unit, xlabel = BUDGETS.get(distance, (1, f"{distance} radius"))
        for i, row in enumerate(table.rows):
            points = [(unit * float(key.rpartition("/")[2]), row.numbers[key]) for key in keys]
            _curve(axes, points, i, row.model)
        axes.set(xlabel=xlabel, ylabel="accuracy (%)")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def _curve(axes: Any, points: Iterable[tuple[float, Number]], i: int, label: str) -> None:
    """Draw a line through our numbers, with bars where any has a deviation."""
    measured = [(x, n.mean, n.std or 0.0) for x, n in points if n.mean is not None]
    if measured:
        x, y, spread = zip(*sorted(measured), strict=True)
        style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        bars = spread if any(spread) else None
        axes.errorbar(x, y, yerr=bars, markersize=5, capsize=2.5, label=label, zorder=3, **style)


def _figure(
    rows: int, columns: int, width: float, height: float, *, sharey: bool = False
) -> tuple[Figure, Any]:
    figure = new_figure(width, height, w_pad=0.08, h_pad=0.06)
    return figure, figure.subplots(rows, columns, squeeze=False, sharey=sharey)


# ----------------------------------------------------------------- the evaluations' own pictures


SEPARATOR = "--"  # between table, run and picture in the name of a copy


def copy_pictures(tables: Mapping[str, Any], folder: Path, results: Path) -> list[Path]:
    """Copy the pictures of each table's overlays and samples from one seed, as
    <table>--<run>--<picture>.png, and remove the table's earlier copies where there are new copies.
    `tables`: name -> scripts.rows.Table. Return the copies' paths."""
    copied = []
    for name, table in tables.items():
        patterns = [(run, f"{question.split()[0]}.png") for run, question, _ in table.overlays]
        for question in (question.split()[0] for question in table.questions):
            if question.endswith("_samples"):  # not earlier answers' pictures, <question>-1_...
                patterns += [(row, f"eval/{question}_*.png") for row in table.rows]
        copies = []
        for path in (path for pattern in patterns for path in of_first_seed(folder, *pattern)):
            run = path.relative_to(folder).parts[0]
            target = results / SEPARATOR.join([name, run, path.name])
            copies.append(write(target, path.read_bytes()))
        for stale in set(copies_of(name, results)) - set(copies) if copies else ():
            stale.unlink()
        copied += copies
    return copied


def copies_of(name: str, results: Path) -> list[Path]:
    """Return the copied pictures of a table, sorted by name with 2 before 10."""
    return by_number(results.glob(f"{name}{SEPARATOR}*{SEPARATOR}*.png"))


def of_first_seed(folder: Path, name: str, pattern: str) -> list[Path]:
    """Return the pictures of the lowest seed that has any. Of a grid that was drawn after several
    numbers of SGLD steps, take the last."""
    for run in by_number(folder.glob(f"{name}-s[0-9]*")):
        kinds = {re.sub("_[0-9]+$", "", p.stem): p for p in by_number(run.glob(pattern))}
        if kinds:
            return [path for _, path in sorted(kinds.items())]
    return []


def by_number(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: natural(path.stem))
