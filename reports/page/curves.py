"""Lay out the training curves: charts of groups of columns of progress.csv."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from reports.page.markup import parsed
from reports.page.run import Run

WIDTH, HEIGHT = 400, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 34
LIMIT = 1e30  # larger values, of a run that diverges, would flatten the rest of the curve
MAX_DOTS = 30  # a line of more points has no dots
Points = list[tuple[float, float | None]]  # epoch, value


class Panel(NamedTuple):
    """One chart in the coordinates of its SVG."""

    title: str
    spoken: str  # for screen readers
    values: str  # JSON: name -> [[epoch, value, the epoch's x in the SVG], ...], for page.js
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lines: list[tuple[str, str, list[tuple[float, float]]]]  # name, path, positions of dots


SPLIT = "Training loss"  # with a chart for each term, since terms differ in magnitude
PANELS = (  # title, columns of progress.csv, factor, whether the axis begins at zero
    ("Accuracy (%)", "(train|valid|test)_acc", 100, False),
    (SPLIT, "(.*/)?loss", 1, False),
    ("Cross-entropy (nats), held-out images", "(valid|test)_loss", 1, False),
    ("log q + const (nats)", ".*/log_q_.*", 1, False),
    ("Learning rate", "lr", 1, True),
    ("Images a second", "images_per_s", 1, True),
)


def panels(runs: Mapping[str, Run]) -> list[Panel]:
    """Return charts of accuracy, losses, log q, learning rate and speed over epochs. A single
    run has a line for each column; several runs, by their labels, have a chart for each column."""
    charts, several = [], len(runs) > 1
    columns = dict.fromkeys(name for run in runs.values() for row in run.rows[:1] for name in row)
    for title, pattern, scale, from_zero in PANELS:
        names = [name for name in columns if re.fullmatch(pattern, name)]
        if names[:1] == ["loss"] and len(names) == 2 and not several:
            names = names[1:]  # a single term: both curves have the same shape
        groups: dict[str, dict[str, Points]] = {}
        for name in names:
            lines = {label: _points(run.rows, name, scale) for label, run in runs.items()}
            if any(y is not None for points in lines.values() for _, y in points):
                split = several or title == SPLIT
                group = groups.setdefault(f"{title}: {name}" if split else title, {})
                group |= lines if several else {name: next(iter(lines.values()))}
        charts += [_panel(name, lines, from_zero=from_zero) for name, lines in groups.items()]
    return charts


def _points(rows: Sequence[dict[str, str]], name: str, scale: float) -> Points:
    pairs = [(parsed(row.get("epoch")), parsed(row.get(name))) for row in rows]
    limited = [(x, y if y is None or abs(y) < LIMIT else None) for x, y in pairs]
    return [(x, None if y is None else scale * y) for x, y in limited if x is not None]


def _panel(title: str, series: dict[str, Points], *, from_zero: bool) -> Panel:
    xs = sorted({x for points in series.values() for x, _ in points})
    finite = {name: [y for _, y in points if y is not None] for name, points in series.items()}
    ys = [y for values in finite.values() for y in values]
    y_ticks = ticks(min(0.0, *ys) if from_zero else min(ys), max(ys), 5)
    low, high, span = y_ticks[0], y_ticks[-1], xs[-1] - xs[0]

    def px(x: float) -> float:
        inner = WIDTH - LEFT - RIGHT - 16  # room for a dot at either side
        return round(LEFT + 8 + (inner * (x - xs[0]) / span if span else inner / 2), 2)

    def py(y: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (high - y) / (high - low), 2)

    lines = []
    for name, points in series.items():
        path, pen = [], "M"  # a gap in the values is a gap in the line
        for x, y in points:
            if y is not None:
                path.append(f"{pen}{px(x)} {py(y)}")
            pen = "M" if y is None else "L"
        has_dots = len(points) <= MAX_DOTS or len(path) == 1
        dots = [(px(x), py(y)) for x, y in points if y is not None and has_dots]
        lines.append((name, "".join(path), dots))
    spoken = ", ".join(f"{name} from {v[0]:.4g} to {v[-1]:.4g}" for name, v in finite.items() if v)
    values = {name: [[x, y, px(x)] for x, y in points] for name, points in series.items()}
    x_labels = [(px(x), f"{x:g}") for x in ticks(xs[0], xs[-1], 6, whole=True)]
    y_labels = [(py(y), f"{y:.6g}") for y in y_ticks]
    return Panel(title, spoken, json.dumps(values), x_labels, y_labels, lines)


def ticks(low: float, high: float, about: int, *, whole: bool = False) -> list[float]:
    """Return round numbers; they enclose [low, high], or with `whole` are integers within it."""
    from matplotlib.ticker import MaxNLocator

    if not whole and high - low <= 1e-9 * max(abs(low), abs(high), 1e-12):
        low, high = low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5)
    values = MaxNLocator(about, steps=[1, 2, 5, 10], integer=whole).tick_values(low, high)
    return [float(v) for v in values if not whole or low <= v <= high]
