"""Pictures: results of evaluations, grids of samples, and a run's curves.

Every `draw_*` returns a matplotlib Figure in matplotlib's current style, which a notebook can show
and change; `save` writes it in the project's style.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from evaluation.sampling import to_uint8
from runs.style import BUDGETS, COLOURS, MARKERS, STYLE, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Models = Sequence[Mapping[str, Any]]

PER_ROW = 4  # panels side by side that stay legible in a page's width
# The paper's green and red: a light and a dark colour, which also differ when printed in grey.
IN, OUT = "#3dba6f", "#a50f25"
BAR, GAP = "#4477aa", "#cc3311"
FRAME = 2  # black pixels around each image of a grid


def save(path: Path, draw: Callable[..., Figure], *args: Any, **options: Any) -> list[Path]:
    """Write the figure that `draw(*args, **options)` returns as PNG and PDF, at `path` plus the
    suffix. Return both paths. The same numbers give the same bytes."""
    from matplotlib import rc_context

    paths = [path.with_name(path.name + suffix) for suffix in (".png", ".pdf")]
    with rc_context(STYLE):
        figure = draw(*args, **options)
        figure.savefig(paths[0], bbox_inches="tight", dpi=150)
        figure.savefig(paths[1], bbox_inches="tight", metadata={"CreationDate": None})
    return paths


def draw_histograms(models: Models, *, xlabel: str = "log q(x)") -> Figure:
    """Draw Figure 1 of HDGE: densities of the scores of in-distribution and OOD images.

    Each model {"label", "sets": [(title, scores (n,), auroc), ...]} has rows of panels: its first
    set is in-distribution, and each OOD set after it has a panel, at most PER_ROW in a row. All of
    a model's panels share 60 bins, from the lowest 0.5 % quantile of its sets to the highest 99.5 %
    quantile; scores outside are not drawn, but count in the densities.
    """
    rows, columns = _grid_shape(max(len(model["sets"]) - 1 for model in models))  # of a model
    figure, grid = _subplots(rows * len(models), columns, width=2.5, height=2.15)
    titles = [[title for title, *_ in model["sets"]] for model in models]
    for m, model in enumerate(models):
        panels = grid[m * rows : (m + 1) * rows].ravel()
        inside, *ood_sets = model["sets"]
        edges = _shared_bins([scores for _, scores, _ in model["sets"]])
        for axes in panels[len(ood_sets) :]:
            axes.remove()
        for p, (axes, outside) in enumerate(zip(panels, ood_sets, strict=False)):
            for (title, scores, _), colour, alpha in ((inside, IN, 0.55), (outside, OUT, 0.3)):
                density = np.histogram(scores, edges)[0] / (len(scores) * np.diff(edges))
                line = {"edgecolor": colour, "linewidth": 1.2, "label": title}
                axes.stairs(density, edges, fill=True, facecolor=(colour, alpha), **line)
            axes.set(xlim=(edges[0], edges[-1]), xlabel=xlabel)
            axes.set_ylim(0, axes.dataLim.ymax * 1.22)  # room for the number above the curves
            axes.text(0.02, 0.98, f"AUROC {outside[2]:.3f}", transform=axes.transAxes, va="top")
            if not m or rows > 1 or titles[m] != titles[m - 1]:
                above: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1)}
                # With handles: otherwise a legend leaves out labels that begin with "_".
                axes.legend(handles=axes.patches, borderaxespad=0.2, borderpad=0, **above)
            axes.locator_params(nbins=4)
            if p % columns == 0:
                name = model["label"]
                # A name of 17 letters is as long as a panel is high.
                axes.set_ylabel(f"{name}\ndensity", fontsize=10 * min(1, 17 / max(len(name), 1)))
    return figure


def draw_reliability(models: Models) -> Figure:
    """Draw Figure 2 of HDGE: accuracy against confidence, and below it the share of each bin.

    Each model {"label", "accuracy", "ece", "bins"}, the last three as `calibration` returns them,
    has a column. A gap goes from a bin's accuracy to its mean confidence: ECE is the mean length
    of the gaps, weighted by the bins' shares of images. A gap above its bar shows overconfidence; a
    gap drawn over its bar, which looks darker, shows underconfidence.
    """
    rows, columns = _grid_shape(len(models))
    width = 3.2 if columns == 1 else 2.5  # a single column has to be as wide as the legend
    heights = [2.6, 1] * rows
    figure, grid = _subplots(2 * rows, columns, width, 2.1, height_ratios=heights)
    for i in range(rows * columns):
        top, below = grid[2 * (i // columns) : 2 * (i // columns) + 2, i % columns]
        if i < len(models):
            _reliability(top, below, models[i], first=i % columns == 0)
        else:
            top.remove()
            below.remove()
    entries = [axes.get_legend_handles_labels() for axes in grid[:2, 0]]
    handles, labels = (top + below for top, below in zip(*entries, strict=True))
    tight: dict[str, Any] = {"fontsize": 9, "columnspacing": 1.2, "handlelength": 1.5}
    ncols = 4 if columns > 2 else 2
    figure.legend(handles, labels, loc="outside upper center", ncols=ncols, **tight)
    return figure


def draw_robustness(models: Models, distance: str, title: str) -> Figure:
    """Draw Figure 4 of HDGE: accuracy in % against the attack's radius in `distance`, Linf or L2.

    Each model has a line: {"label", "rows": [{"eps" (pixels in [0, 1]), "accuracy" (0..1)}, ...]}.
    """
    figure, (axes,) = _panels(1, width=4.4, height=3.3)
    unit, xlabel = BUDGETS[distance]
    for i, model in enumerate(models):
        points = sorted((row["eps"] * unit, 100 * row["accuracy"]) for row in model["rows"])
        _line(axes, points, i, model["label"])
    axes.set(xlabel=xlabel, ylabel="accuracy (%)", title=title)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(handles=axes.lines)  # otherwise it leaves out labels that begin with "_"
    return figure


def _line(axes: Any, points: Sequence[tuple[float, float]], i: int, label: str) -> None:
    """Draw the i-th line of a panel, with markers that the panel's frame does not cover."""
    style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
    options: dict[str, Any] = {"markersize": 5, "clip_on": False, "zorder": 3, "label": label}
    axes.plot(*zip(*points, strict=True), **style, **options)


def draw_lengths(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw FID, precision and recall of samples against the SGLD steps of their chains, and, where
    rows have it, the share that a classifier reads as the requested class ("read_as_asked").

    `rows`: see `evaluation.generation.compared`. A row whose steps are None is of real images: a
    dashed line.
    """
    panels = {"FID": ["fid"], "precision and recall": ["precision", "recall"]}
    if any(row.get("read_as_asked") is not None for row in rows):
        panels["read as asked"] = ["read_as_asked"]
    steps = [row["steps"] for row in rows if row["steps"] is not None]
    figure, all_axes = _panels(len(panels), width=3.1, height=2.8)
    for axes, (title, keys) in zip(all_axes, panels.items(), strict=True):
        for i, key in enumerate(keys):
            points = [(row["steps"], row[key]) for row in rows if row.get(key) is not None]
            if chains := [point for point in points if point[0] is not None]:
                _line(axes, chains, i, key)
            for value in (value for step, value in points if step is None):
                axes.axhline(value, color=COLOURS[i], linestyle="--", linewidth=1)
        axes.set(title=title, xlabel="SGLD steps")
        axes.set_xscale("symlog", linthresh=10)
        axes.set_xticks(steps, [str(step) for step in steps])
        axes.minorticks_off()
        axes.set_xlim(0, max(1, *steps))
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        if len(keys) > 1:
            axes.legend()
    return figure


def _reliability(top: Any, below: Any, model: Mapping[str, Any], *, first: bool) -> None:
    """Draw one column of `draw_reliability`; the first column labels the y axes."""
    bins = [b for b in model["bins"] if b["count"]]
    keys = ("lower", "count", "confidence", "accuracy")
    lower, count, confidence, accuracy = (np.array([b[key] for b in bins]) for key in keys)
    width = np.array([b["upper"] for b in bins]) - lower
    share = count / count.sum()
    bar: dict[str, Any] = {"align": "edge", "width": width, "linewidth": 0.5}
    top.bar(lower, accuracy, color=BAR, edgecolor="white", label="accuracy of a bin", **bar)
    gap: dict[str, Any] = {"facecolor": GAP + "40", "edgecolor": GAP, "hatch": "////", **bar}
    top.bar(lower, confidence - accuracy, bottom=accuracy, label="gap to its confidence", **gap)
    top.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1)
    numbers = f"accuracy {100 * model['accuracy']:.1f} %, ECE {100 * model['ece']:.1f} %"
    top.set(title=f"{model['label']}\n{numbers}", xlim=(0, 1), ylim=(0, 1))

    below.bar(lower, 100 * share, color="#bbbbbb", edgecolor="white", **bar)
    mean = (share * confidence).sum()
    below.axvline(model["accuracy"], color=BAR, linewidth=1.5, label="mean accuracy")
    below.axvline(mean, color=GAP, linewidth=1.5, linestyle="--", label="mean confidence")
    below.set(xlabel="confidence", xlim=(0, 1))
    for axis in (top.xaxis, top.yaxis, below.xaxis):
        axis.set_ticks(np.arange(6) / 5)
    if first:
        top.set_ylabel("accuracy")
        below.set_ylabel("images (%)")


def _grid_shape(n: int) -> tuple[int, int]:
    """Return (rows, columns) for n panels: the fewest rows with at most PER_ROW columns."""
    rows = math.ceil(n / PER_ROW)
    return rows, math.ceil(n / rows)


def _panels(n: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """Return a figure with n axes of the given size in inches, arranged by `_grid_shape`."""
    figure, grid = _subplots(*_grid_shape(n), width, height)
    for axes in grid.ravel()[n:]:
        axes.remove()
    return figure, grid.ravel()[:n]


def _shared_bins(sets: Sequence[np.ndarray], n: int = 60) -> np.ndarray:
    """Return the edges of n bins over the sets' quantiles, see `draw_histograms`."""
    low, high = (pick(np.quantile(s, q) for s in sets) for pick, q in ((min, 0.005), (max, 0.995)))
    if high - low <= 1e-9 * max(abs(low), abs(high), 1):  # every score is the same
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, n + 1)


def _subplots(
    rows: int, columns: int, width: float, height: float, **ratios: Any
) -> tuple[Figure, np.ndarray]:
    """Return a figure with rows x columns axes of the given size in inches."""
    figure = new_figure(width * columns + 0.5, height * rows + 0.3)
    return figure, figure.subplots(rows, columns, squeeze=False, **ratios)


def grid(images: Tensor, columns: int | None = None) -> Tensor:
    """Arrange images (n, 3, h, w), clipped to [-1, 1], in rows of a picture uint8 (H, W, 3), each
    with FRAME black pixels around it. Without `columns` the grid is about square."""
    n = len(images)
    columns = columns or math.ceil(math.sqrt(n))
    cells = F.pad(to_uint8(images).cpu(), (0, 0, FRAME, 0, FRAME, 0, 0, -n % columns))
    picture = cells.unflatten(0, (-1, columns)).transpose(1, 2).flatten(2, 3).flatten(0, 1)
    return F.pad(picture, (0, 0, 0, FRAME, 0, FRAME))


def save_grid(
    path: Path, images: Tensor, columns: int | None = None, row_labels: Sequence[str] = ()
) -> Tensor:
    """Write the grid of the images as PNG: with row labels or, as images are small, at twice
    its size. Return the grid, in its own size and without labels."""
    from matplotlib import rc_context
    from PIL import Image

    picture = grid(images, columns)
    if row_labels and columns:
        with rc_context(STYLE):
            figure = draw_grids({"": images}, columns=columns, row_labels=row_labels)
            figure.savefig(path, dpi=150, bbox_inches="tight")
        return picture
    image = Image.fromarray(picture.numpy())
    image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST).save(path)
    return picture


def draw_grids(
    grids: Mapping[str, Tensor],
    *,
    columns: int,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
) -> Figure:
    """Draw grids of images (n, 3, h, w) side by side, each under its name. `row_labels`, left of
    the first grid, and `column_labels` label all rows and all columns, or are empty."""
    rows = math.ceil(max(map(len, grids.values())) / columns)
    size = min(0.55, 7.5 / (columns * len(grids)))  # inches of an image; the figure fits a page
    label_width = 0.6 + 0.09 * max(map(len, row_labels), default=0)  # inches
    figure = new_figure((size * columns + 0.1) * len(grids) + label_width, size * rows + 0.5)
    all_axes: Any = figure.subplots(1, len(grids), squeeze=False)
    for i, (name, images) in enumerate(grids.items()):
        axes = all_axes[0, i]
        axes.imshow(grid(images, columns).numpy(), interpolation="nearest")
        labels = () if i else row_labels
        axes.set_yticks(_middles(len(labels), images.shape[2]), labels)
        axes.set_xticks(_middles(len(column_labels), images.shape[3]), column_labels)
        axes.set_xlabel(name, fontsize=9)
        axes.tick_params(length=0, labelsize=9, labeltop=True, labelbottom=False)
        axes.xaxis.set_label_position("top")
        axes.spines[:].set_visible(False)
    return figure


def _middles(n: int, size: int) -> list[float]:
    """Return the centres, in pixels of the grid, of its first n images of `size` pixels."""
    return [FRAME + (size + FRAME) * i + (size - 1) / 2 for i in range(n)]


def save_curves(path: Path, rows: list[dict[str, str]]) -> None:
    from matplotlib import rc_context

    with rc_context(STYLE):
        draw_curves(rows).savefig(path, dpi=110)


def draw_curves(rows: list[dict[str, str]]) -> Figure:
    """Draw accuracy, losses, log q and learning rate over epochs, from rows of progress.csv.

    Each term's loss has a panel of its own, as losses differ by orders of magnitude; the training
    cross-entropy shares a panel with the cross-entropy of the validation and test images.
    """
    names = [name for name in rows[0] if any(row[name] for row in rows)]
    nll: list[str] = [n for n in ("pyxce/loss", "valid_loss", "test_loss") if n in names]
    terms = [n for n in names if n.endswith("/loss")]
    other_losses = [n for n in names if n.endswith("loss") and n not in nll]
    candidates: dict[str, list[str]] = {
        "accuracy (%)": [n for n in ("train_acc", "valid_acc", "test_acc") if n in names],
        "cross-entropy (nats)": nll,
        **{n: [n] for n in other_losses if n != "loss" or len(terms) != 1},  # "loss" is the sum
        "log q + const (nats)": [n for n in names if "/log_q_" in n],
        "learning rate": ["lr"],
    }
    panels = {title: columns for title, columns in candidates.items() if columns}
    figure, all_axes = _panels(len(panels), width=3.3, height=2.4)
    for axes, (title, columns) in zip(all_axes, panels.items(), strict=True):
        _curves(axes, title, {c: [(row["epoch"], row[c]) for row in rows] for c in columns})
    return figure


def _curves(axes: Any, title: str, series: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    """Draw a panel with a line for each of `series`, (epoch, value) texts; accuracies in %."""
    scale = 100 if title.startswith("accuracy") else 1
    for (name, texts), colour in zip(series.items(), COLOURS, strict=False):
        points = [(int(x), scale * float(y)) for x, y in texts if y]
        axes.plot(*zip(*points, strict=True), color=colour, label=name,
                  marker="." if len(points) < 30 else None)  # fmt: skip
    axes.set(xlabel="epoch", ylabel=title)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.grid(alpha=0.3)
    if title == "learning rate":
        axes.set_ylim(bottom=0)
    if len(series) > 1:  # above the curves
        style: dict[str, Any] = {"fontsize": 8, "columnspacing": 0.8, "handlelength": 1}
        style["ncols"] = 3 if max(map(len, series)) < 12 else 1  # no wider than the axes
        axes.legend(loc="lower left", bbox_to_anchor=(-0.1, 1), borderpad=0, **style)
