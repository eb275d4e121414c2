"""One picture a table: our numbers beside the paper's, or their curve. And the evaluations' own
pictures, copied beside the records."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reports.tables.records import write
from reports.tables.table import Number, Table
from reports.tables.titles import TABLES, column_title, natural
from runs.style import BUDGETS, COLOURS, MARKERS, STYLE, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OURS, PAPER = COLOURS[0], COLOURS[1]
PER_ROW = 5


def save_picture(table: Table, path: Path) -> bool:
    """Write the PNG, the same bytes every time. Return False where it would compare nothing: fewer
    than two rows, ours or the paper's, have a number."""
    from matplotlib import rc_context

    kind = TABLES.get(table.name, {}).get("picture", "dots")
    found = [row.numbers.values() for row in table.rows]
    ours = sum(any(has_number(n, False) for n in numbers) for numbers in found)
    papers = sum(any(n.paper is not None for n in numbers) for numbers in found)
    if kind == "none" or ours + papers < 2:
        return False
    with rc_context(STYLE):
        figure = {"dots": dots, "curves": curves, "robustness": robustness}[kind](table)
        if figure is None:
            return False
        file = io.BytesIO()
        # Without matplotlib's version, which is no result.
        figure.savefig(file, format="png", dpi=130, metadata={"Software": None})
    write(path, file.getvalue())
    return True


def drawn(table: Table, *, paper: bool = False) -> list[tuple[str, list[str]]]:
    """Return the blocks that have a number of ours (or of the paper), and their keys that do."""
    blocks = []
    for title, keys in table.blocks:
        found = [k for k in keys if any(has_number(row.numbers[k], paper) for row in table.rows)]
        blocks += [(title, found)] if found else []
    return blocks


def has_number(number: Number, paper: bool) -> bool:
    return number.mean is not None or (paper and number.paper is not None)


def dots(table: Table) -> Figure | None:
    """Draw a panel a column, a line a row: a filled circle with the standard deviation over seeds
    is ours, a diamond the paper's."""
    blocks = drawn(table, paper=True)
    keys = [key for _, found in blocks for key in found]
    lines = [row for row in table.rows if any(has_number(row.numbers[k], True) for k in keys)]
    if not lines:
        return None
    starts = [  # a block begins a new row of panels
        [(title, key) for key in found[i : i + PER_ROW]]
        for title, found in blocks
        for i in range(0, len(found), PER_ROW)
    ]
    columns = max(map(len, starts))
    height = len(starts) * (1.0 + 0.25 * len(lines)) + 0.4
    figure, grid = _figure(len(starts), columns, 2.9 + 2.0 * columns, height, sharey=True)
    shared: dict[str, list[Any]] = {}
    for axes_row, row in zip(grid, starts, strict=True):
        for axes, (title, key) in zip(axes_row, row, strict=False):
            for y, line in enumerate(lines):
                _dot(axes, line.numbers[key], y)
            axes.set_title(textwrap.fill(column_title(key), 22))
            axes.set_yticks(range(len(lines)), [_short(line.model) for line in lines])
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
    numbers = [line.numbers[key] for line in lines for key in keys]
    if any(number.paper is not None for number in numbers):  # else nothing is to be told apart
        _legend(figure, any(number.mean is not None for number in numbers), table.scale)
    return figure


def _dot(axes: Any, number: Number, y: int) -> None:
    if number.paper is not None:
        diamond: dict[str, Any] = {"marker": "D", "markersize": 6, "fillstyle": "none"}
        axes.plot(number.paper, y, color=PAPER, zorder=3, **diamond)
    if number.mean is not None:
        circle: dict[str, Any] = {"marker": "o", "markersize": 5, "capsize": 2.5}
        axes.errorbar(number.mean, y, xerr=number.std, color=OURS, zorder=4, **circle)


def _legend(figure: Figure, ours: bool, scale: str) -> None:
    from matplotlib.lines import Line2D

    shown = [Line2D([], [], marker="D", color=PAPER, fillstyle="none", linestyle="", label="paper")]
    if ours:
        label = f"ours ({scale}): mean and standard deviation over seeds"
        shown.insert(0, Line2D([], [], marker="o", color=OURS, linestyle="", label=label))
    figure.legend(handles=shown, loc="outside upper right", ncols=2)


def curves(table: Table) -> Figure | None:
    """Draw a panel a block: each column against what the experiments vary, mean and deviation; an
    experiment off the axis is a horizontal line."""
    xlabel, places = TABLES[table.name]["curve"]
    blocks = drawn(table)
    if not blocks:
        return None
    figure, (grid,) = _figure(1, len(blocks), 4.3 * len(blocks) + 0.4, 3.6)
    ticks = [x for x in places.values() if x is not None]
    for axes, (title, keys) in zip(grid, blocks, strict=True):
        for i, key in enumerate(keys):
            found = [(places.get("".join(r.experiments)), r.numbers[key], r) for r in table.rows]
            for x, number, row in found:
                if x is None and number.mean is not None:
                    axes.axhline(number.mean, color="#444444", linestyle="--", label=row.model)
                    low, high = (number.mean + sign * (number.std or 0) for sign in (-1, 1))
                    axes.axhspan(low, high, color="#444444", alpha=0.12, linewidth=0)
            name = "HDGE" if len(keys) == 1 else column_title(key)
            _curve(axes, [(x, number) for x, number, _ in found if x is not None], i, name)
        if max(ticks) > 100:
            axes.set_xscale("log", base=2)
            axes.minorticks_off()
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.set(xlabel=xlabel, ylabel=column_title(keys[0]) if len(keys) == 1 else title)
        axes.grid(alpha=0.3)
        if len(keys) > 1 or None in places.values():
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8)
    return figure


def robustness(table: Table) -> Figure | None:
    """Draw accuracy against the attack's radius: a panel a distance, a line a model."""
    blocks = drawn(table)
    if not blocks:
        return None
    figure, (grid,) = _figure(1, len(blocks), 4.6 * len(blocks) + 0.3, 3.6)
    for axes, (_, keys) in zip(grid, blocks, strict=True):
        distance = keys[0].split("/")[1]
        unit, xlabel = BUDGETS.get(distance, (1, f"{distance} radius"))
        for i, row in enumerate(table.rows):
            places = [(unit * float(key.rpartition("/")[2]), row.numbers[key]) for key in keys]
            _curve(axes, places, i, row.model)
        axes.set(xlabel=xlabel, ylabel="accuracy (%)")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def _curve(axes: Any, places: Iterable[tuple[float, Number]], i: int, label: str) -> None:
    """Draw a line through our numbers; without bars where there is no deviation."""
    points = [(x, n.mean, n.std or 0.0) for x, n in places if n.mean is not None]
    if points:
        x, y, spread = zip(*sorted(points), strict=True)
        style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        bars = spread if any(spread) else None
        axes.errorbar(x, y, yerr=bars, markersize=5, capsize=2.5, label=label, zorder=3, **style)


def _figure(
    rows: int, columns: int, width: float, height: float, **more: Any
) -> tuple[Figure, Any]:
    figure = new_figure(width, height, w_pad=0.08, h_pad=0.06)
    return figure, figure.subplots(rows, columns, squeeze=False, **more)


def _short(name: str) -> str:
    return name if len(name) <= 50 else name[:49] + "\N{HORIZONTAL ELLIPSIS}"


# ----------------------------------------------------------------- the evaluations' own pictures


def copy_pictures(tables: Mapping[str, Any], folder: Path, results: Path) -> list[Path]:
    """Copy those of the figures from one seed, as <table>[-n].png: in place of those that were
    copied earlier, where there are new ones. tables: name -> scripts.rows.Table."""
    copied = []
    for name, table in tables.items():
        pictures = [
            path
            for place, question, _ in table.overlays
            for path in first_seed(folder, place, f"{question.split()[0]}.png")
        ]
        samples = [q.split()[0] for q in table.questions if q.split()[0].endswith("_samples")]
        for row in table.rows if samples else ():
            for run in first_seed(folder, row, "eval"):
                pictures += last_grids(run, samples)
        targets = [
            write(results / f"{name}{f'-{i}' * (len(pictures) > 1)}.png", path.read_bytes())
            for i, path in enumerate(pictures, 1)
        ]
        for stale in set(copies_of(name, results)) - set(targets) if targets else ():
            stale.unlink()
        copied += targets
    return copied


def copies_of(name: str, results: Path) -> list[Path]:
    """Return the copied pictures of a table, in their order."""
    kept = re.compile(rf"{re.escape(name)}(-[0-9]+)?")
    found = [path for path in results.glob("*.png") if kept.fullmatch(path.stem)]
    return sorted(found, key=lambda path: natural(path.stem))


def first_seed(folder: Path, name: str, within: str) -> list[Path]:
    """Return <folder>/<name>-s<seed>/<within> of the lowest seed that has it, in a list."""
    seeds = [path for path in folder.glob(f"{name}-s*") if path.name[len(name) + 2 :].isdecimal()]
    found = [path / within for path in seeds if (path / within).exists()]
    return sorted(found, key=lambda path: natural(path.parent.name))[:1]


def last_grids(folder: Path, questions: Sequence[str]) -> list[Path]:
    """Return of each kind of grid the one after most SGLD steps."""
    kinds: dict[str, Path] = {}
    for question in questions:  # not those set aside: <question>-1_...
        for path in sorted(folder.glob(f"{question}_*.png"), key=lambda path: natural(path.stem)):
            kind, _, steps = path.stem.rpartition("_")
            kinds[kind if steps.isdecimal() else path.stem] = path
    return [path for _, path in sorted(kinds.items())]
