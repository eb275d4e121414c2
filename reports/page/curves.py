"""Training curves as inline SVG, drawn from the rows of progress.csv."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence

from reports.page.markup import Html, join, number, tag

WIDTH, HEIGHT = 400, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 34
DRAWN = 1e30  # what a diverging run reports beyond this would flatten everything else
MARKED = 30  # up to so many points each has a dot
Points = list[tuple[float, float | None]]
Scale = Callable[[float], float]


def panels(rows: Sequence[dict[str, str]]) -> Html | None:
    """Accuracy, losses, log q(x), learning rate and speed over epochs; None without any row."""
    names = list(rows[0]) if rows else []
    chosen: dict[str, list[str]] = {
        "Accuracy (%)": [n for n in ("train_acc", "valid_acc", "test_acc") if n in names],
        "Training loss, by term": [n for n in names if n == "loss" or n.endswith("/loss")],
        "Cross-entropy, held-out images": [n for n in ("valid_loss", "test_loss") if n in names],
        "log q(x) + const": [n for n in names if "/log_q_" in n],
        "Learning rate": [n for n in ("lr",) if n in names],
        "Images a second": [n for n in ("images_per_s",) if n in names],
    }
    drawn = []
    for title, columns in chosen.items():
        if title.startswith("Training") and len(columns) == 2:
            columns = columns[1:]  # the only term is the loss
        scale = 100 if title.startswith("Accuracy") else 1
        series = {name: _points(rows, name, scale) for name in columns}
        series = {n: p for n, p in series.items() if any(y is not None for _, y in p)}
        if series:
            drawn.append(
                panel(title, series, from_zero=title in ("Learning rate", "Images a second"))
            )
    return tag("div", *drawn, class_="panels") if drawn else None


def _points(rows: Sequence[dict[str, str]], name: str, scale: float) -> Points:
    found: Points = []
    for row in rows:
        x, y = _float(row.get("epoch")), _float(row.get(name))
        if x is not None:
            found.append((x, None if y is None else scale * y))
    return found


def _float(text: str | None) -> float | None:
    try:
        value = number(float(text or ""))
    except ValueError:
        return None
    return value if value is not None and abs(value) < DRAWN else None


def panel(title: str, series: dict[str, Points], *, from_zero: bool = False) -> Html:
    """One chart; the values beside the pointer are shown by the page's script."""
    xs = sorted({x for points in series.values() for x, _ in points})
    ys = [y for points in series.values() for _, y in points if y is not None]
    x_ticks = ticks(xs[0], xs[-1], 6, whole=True)
    y_ticks = ticks(min(0.0, *ys) if from_zero else min(ys), max(ys), 5)
    low, high = y_ticks[0], y_ticks[-1]

    def px(x: float) -> float:
        span = xs[-1] - xs[0]
        inner = WIDTH - LEFT - RIGHT - 16  # room for a dot at either side
        return round(LEFT + 8 + (inner * (x - xs[0]) / span if span else inner / 2), 2)

    def py(y: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (high - y) / (high - low), 2)

    lines = [_grid(x_ticks, y_ticks, px, py)]
    lines += [_line(points, px, py, i) for i, points in enumerate(series.values(), 1)]
    cursor = tag("line", class_="cursor", y1=TOP, y2=HEIGHT - BOTTOM, x1=-9, x2=-9)
    # The width within the coordinates stays as it is; the script maps the pointer to them.
    values = {name: [[x, y, px(x)] for x, y in points] for name, points in series.items()}
    picture = tag(
        "svg", *lines, cursor, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img",
        aria_label=f"{title} over epochs: {_spoken(series)}", data_series=json.dumps(values),
    )  # fmt: skip
    names = [tag("span", tag("i", class_=f"s{i}"), n) for i, n in enumerate(series, 1)]
    head = tag("h3", title)
    legend = tag("p", *names, class_="legend")
    return tag(
        "div", head, legend, picture, tag("p", class_="tip", hidden="hidden"), class_="panel"
    )


def _spoken(series: dict[str, Points]) -> str:
    ends = []
    for name, points in series.items():
        values = [y for _, y in points if y is not None]
        ends.append(f"{name} from {values[0]:.4g} to {values[-1]:.4g}")
    return ", ".join(ends)


def _grid(x_ticks: list[float], y_ticks: list[float], px: Scale, py: Scale) -> Html:
    parts = []
    for y in y_ticks:
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=py(y), y2=py(y), class_="grid"))
        parts.append(tag("text", f"{y:.6g}", x=LEFT - 7, y=py(y) + 4, text_anchor="end"))
    for x in x_ticks:
        parts.append(tag("text", f"{x:g}", x=px(x), y=HEIGHT - BOTTOM + 16, text_anchor="middle"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(tag("text", "epoch", x=middle, y=HEIGHT - 3, text_anchor="middle"))
    return join(parts)


def _line(points: Points, px: Scale, py: Scale, index: int) -> Html:
    """A gap in the values is a gap in the line."""
    path, pen = [], "M"
    for x, y in points:
        if y is not None:
            path.append(f"{pen}{px(x)} {py(y)}")
        pen = "M" if y is None else "L"
    dots = [
        tag("circle", cx=px(x), cy=py(y), r=2.6, class_=f"s{index}")
        for x, y in points
        if y is not None and (len(points) <= MARKED or len(path) == 1)
    ]
    return join([tag("path", d="".join(path), class_=f"line s{index}"), *dots])


def ticks(low: float, high: float, about: int, *, whole: bool = False) -> list[float]:
    """Round numbers; they enclose [low, high], or with `whole` are integers within it."""
    span = high - low
    if not whole and span <= 1e-9 * max(abs(low), abs(high), 1e-12):
        low, high = low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5)
        span = high - low
    if whole and span == 0:
        return [low]
    size = 10 ** math.floor(math.log10(span / about))
    step = next(size * k for k in (1, 2, 5, 10, 20) if span / (size * k) <= about)
    if whole:
        step = max(1, step)
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    else:
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.9g}") for i in range(first, last + 1)]
