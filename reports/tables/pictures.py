"""One picture a table: our numbers beside the paper's, or their curve."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reports.tables.cells import Built, Cell
from reports.tables.records import writing
from reports.tables.rows import CURVES
from reports.tables.titles import column_title
from runs.style import BUDGETS, COLOURS, MARKERS, STYLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OURS, PAPER = COLOURS[0], COLOURS[1]
PER_ROW = 5


def save_picture(table: Built, path: Path, flag: str = "--results") -> bool:
    """Write the PNG, the same bytes every time; False where there is no number to draw.

    Raises UsageError, with the flag of the folder, where it cannot be written.
    """
    from matplotlib import rc_context

    draw = {"dots": dots, "curves": curves, "robustness": robustness}.get(table.layout.picture)
    if draw is None:
        return False
    with rc_context(STYLE):
        figure = draw(table)
        if figure is None:
            return False
        with writing(path, flag) as temporary:
            # Without matplotlib's version, which is no result.
            figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})
    return True


def dots(table: Built) -> Figure | None:
    """A panel a column, a line a row: a filled circle with the standard deviation over seeds is
    ours, a diamond the paper's."""
    blocks = [
        (title, [key for key in keys if any(_numbers(line.cells[key]) for line in table.lines)])
        for title, keys in table.blocks
    ]
    panels = [(title, key) for title, keys in blocks for key in keys]
    keys = [key for _, key in panels]
    lines = [line for line in table.lines if any(_numbers(line.cells[key]) for key in keys)]
    if not lines:
        return None
    starts: list[list[tuple[str, str]]] = []  # a block begins a new row of panels
    for title, found in blocks:
        row = [(title, key) for key in found]
        starts += [row[i : i + PER_ROW] for i in range(0, len(row), PER_ROW)]
    columns = max(map(len, starts))
    figure = _figure(2.9 + 2.0 * columns, len(starts) * (1.0 + 0.25 * len(lines)) + 0.4)
    grid: Any = figure.subplots(len(starts), columns, squeeze=False, sharey=True)
    places = range(len(lines))
    shared: dict[str, list[Any]] = {}
    for axes_row, row in zip(grid, starts, strict=True):
        for axes, (title, key) in zip(axes_row, row, strict=False):
            for y, line in enumerate(lines):
                _dot(axes, line.cells[key], y)
            axes.set_title(textwrap.fill(column_title(key), 22))
            axes.set_yticks(places, [_short(line.model) for line in lines])
            axes.set_ylim(len(lines) - 0.5, -0.5)
            axes.grid(alpha=0.3)
            axes.set_xlabel(title if title.startswith("AUROC") else "")
            axes.locator_params(axis="x", nbins=4)
            axes.margins(x=0.12)
            if title.startswith("AUROC"):
                axes.axvline(0.5, color="#888888", linestyle=":", linewidth=1)  # chance
                shared.setdefault(title, []).append(axes)
        for axes in axes_row[len(row) :]:
            axes.remove()
    for group in shared.values():  # panels of one score are read against each other
        low = min(axes.get_xlim()[0] for axes in group)
        high = max(axes.get_xlim()[1] for axes in group)
        for axes in group:
            axes.set_xlim(max(-0.03, min(low, 0.45)), min(1.04, max(high, 0.55)))
    cells = [line.cells[key] for line in lines for key in keys]
    if any(cell.paper for cell in cells):  # else there is nothing to be told apart
        _legend(figure, any(cell.ours for cell in cells), table.scale)
    return figure


def _dot(axes: Any, cell: Cell, y: int) -> None:
    if cell.paper is not None:
        axes.plot(
            cell.paper[0], y, marker="D", markersize=6, color=PAPER, fillstyle="none", zorder=3
        )
    if cell.ours is not None:
        axes.errorbar(
            cell.ours.mean, y, xerr=cell.ours.std, marker="o", markersize=5, color=OURS, 
            capsize=2.5, zorder=4,
        )  # fmt: skip


def _legend(figure: Figure, ours: bool, scale: str) -> None:
    from matplotlib.lines import Line2D

    shown = [Line2D([], [], marker="D", color=PAPER, fillstyle="none", linestyle="", label="paper")]
    if ours:
        label = f"ours ({scale}): mean and standard deviation over seeds"
        shown.insert(0, Line2D([], [], marker="o", color=OURS, linestyle="", label=label))
    figure.legend(handles=shown, loc="outside upper right", ncols=2)


def curves(table: Built) -> Figure | None:
    """A panel a block: each column against what the experiments vary, mean and deviation; an
    experiment off the axis is a horizontal line."""
    xlabel, places = CURVES[table.name]
    blocks = [
        (title, [k for k in keys if any(line.cells[k].ours for line in table.lines)])
        for title, keys in table.blocks
    ]
    blocks = [(title, keys) for title, keys in blocks if keys]
    if not blocks:
        return None
    figure = _figure(4.3 * len(blocks) + 0.4, 3.6)
    grid: Any = figure.subplots(1, len(blocks), squeeze=False)
    ticks = [x for x in places.values() if x is not None]
    for axes, (title, keys) in zip(grid[0], blocks, strict=True):
        for i, key in enumerate(keys):
            points = []
            for line in table.lines:
                ours, x = line.cells[key].ours, places.get(line.experiment or "")
                if ours is not None and x is not None:
                    points.append((x, ours.mean, ours.std or 0.0))
                elif ours is not None:
                    axes.axhline(ours.mean, color="#444444", linestyle="--", label=line.model)
                    if ours.std is not None:
                        low, high = ours.mean - ours.std, ours.mean + ours.std
                        axes.axhspan(low, high, color="#444444", alpha=0.12, linewidth=0)
            if points:
                name = "HDGE" if len(keys) == 1 else column_title(key)
                _curve(axes, points, i, name)
        if max(ticks) > 100:
            axes.set_xscale("log", base=2)
            axes.minorticks_off()
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        ylabel = column_title(keys[0]) if len(keys) == 1 else title
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.grid(alpha=0.3)
        if len(keys) > 1 or None in places.values():
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8)
    return figure


def robustness(table: Built) -> Figure | None:
    """Accuracy against the attack's radius: a panel a distance, a line a model."""
    blocks = []
    for _, keys in table.blocks:
        found = [key for key in keys if any(line.cells[key].ours for line in table.lines)]
        if found:
            blocks.append((found[0].split("/")[1], found))
    if not blocks:
        return None
    figure = _figure(4.6 * len(blocks) + 0.3, 3.6)
    grid: Any = figure.subplots(1, len(blocks), squeeze=False)
    for axes, (distance, keys) in zip(grid[0], blocks, strict=True):
        unit, xlabel = BUDGETS.get(distance, (1, f"{distance} radius"))
        for i, line in enumerate(table.lines):
            values = [(unit * float(k.rpartition("/")[2]), line.cells[k].ours) for k in keys]
            points = [(x, v.mean, v.std or 0.0) for x, v in values if v is not None]
            if not points:
                continue
            _curve(axes, points, i, line.model)
        axes.set(xlabel=xlabel, ylabel="accuracy (%)")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def _curve(axes: Any, points: list[tuple[float, float, float]], i: int, label: str) -> None:
    """Through (x, mean, deviation); without bars where there is no deviation."""
    x, y, spread = zip(*sorted(points), strict=True)
    style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
    bars = spread if any(spread) else None
    axes.errorbar(x, y, yerr=bars, markersize=5, capsize=2.5, label=label, zorder=3, **style)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.06)
    FigureCanvasAgg(figure)
    return figure


def _numbers(cell: Cell) -> bool:
    return cell.paper is not None or cell.ours is not None


def _short(name: str) -> str:
    return name if len(name) <= 50 else name[:49] + "\N{HORIZONTAL ELLIPSIS}"
