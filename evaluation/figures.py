"""Pictures of results: score histograms, reliability diagrams and robustness curves.

Every `draw_*` returns the matplotlib Figure, in the style that is set, for notebooks and changes.
Its `save_*` takes a path without suffix before the models, writes PNG and PDF in the project's
style and returns both paths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runs.style import BUDGETS, COLOURS, MARKERS, STYLE, new_figure, save_twice

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Models = Sequence[Mapping[str, Any]]

PER_ROW = 4  # panels side by side that stay legible in a page's width
# The paper's green and red, one light and one dark, to be told apart in grey as well.
IN, OUT = "#3dba6f", "#a50f25"
BAR, GAP = "#4477aa", "#cc3311"


def draw_histograms(models: Models, *, xlabel: str = "log q(x)") -> Figure:
    """Figure 1 of HDGE: how scores of in-distribution and OOD images overlap.

    One row a model {"label", "in": (title, scores), "out": [(title, scores, auroc), ...]} and one
    panel an OOD set, four in a row at most. Scores are (n,) arrays; densities are over all of a
    set's scores. The 60 bins are shared by all of a model's panels and reach from the lowest
    0.5 % quantile of its sets to the highest 99.5 % quantile; what lies beyond is not drawn.
    Raises ValueError without models or OOD sets, and for scores that are none or not finite.
    """
    for model in models:
        if not model["out"]:
            raise ValueError(f"{model['label']} has no OOD set to compare with")
        for title, scores, *_ in (model["in"], *model["out"]):
            if not len(scores) or not np.isfinite(scores).all():
                raise ValueError(f"scores of {title} are none or not finite")
    most = max((len(model["out"]) for model in models), default=1)
    lines, columns = _arranged(most)  # lines a model
    figure, grid = _subplots(models, lines * len(models), columns, width=2.5, height=2.15)
    for m, model in enumerate(models):
        panels = grid[m * lines : (m + 1) * lines].ravel()
        edges = _shared_bins([scores for _, scores, *_ in (model["in"], *model["out"])])
        for p, axes in enumerate(panels):
            if p >= len(model["out"]):
                axes.remove()
                continue
            title, scores, auroc = model["out"][p]
            _filled(axes, model["in"][1], edges, IN, model["in"][0], alpha=0.55)
            _filled(axes, scores, edges, OUT, title, alpha=0.3)
            axes.set(xlim=(edges[0], edges[-1]), xlabel=xlabel)
            axes.set_ylim(0, axes.dataLim.ymax * 1.22)  # room for the number above the curves
            axes.text(0.02, 0.98, f"AUROC {auroc:.3f}", transform=axes.transAxes, va="top")
            if not m or lines > 1 or _titles(model) != _titles(models[m - 1]):
                axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, borderpad=0)
            axes.locator_params(nbins=4)
            if p % columns == 0:
                axes.set_ylabel("density")
                _row_label(axes, model["label"])
    return figure


def draw_reliability(models: Models) -> Figure:
    """Figure 2 of HDGE: accuracy against confidence, and below how often each confidence occurs.

    One column a model {"label", "accuracy", "ece", "bins"}, the last three as `calibration`
    returns them. A gap goes from a bin's accuracy to its mean confidence: ECE is the mean length
    of the gaps, weighted by the bins' shares of images. It is light where the model is surer than
    right and dark, on the bar, where it is less sure. Raises ValueError without models or images.
    """
    lines, columns = _arranged(len(models))
    width = 3.2 if columns == 1 else 2.5  # the legend needs that
    heights = [2.6, 1] * lines
    figure, grid = _subplots(models, 2 * lines, columns, width, 2.1, height_ratios=heights)
    for i in range(lines * columns):
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


def draw_robustness(models: Models) -> Figure:
    """Figure 4 of HDGE: accuracy in % against the attack's radius, one panel a distance.

    One line an entry {"label", "distance": "Linf" or "L2", "attack", "rows": [{"eps" (pixels in
    [0, 1]), "accuracy" (0..1)}, ...]}; a label has one colour in both panels. Raises ValueError
    without models or rows and for another distance.
    """
    for model in models:
        if model["distance"] not in BUDGETS or not model["rows"]:
            raise ValueError(f"{model['label']} has no rows, or another distance than Linf and L2")
    distances = [d for d in BUDGETS if any(model["distance"] == d for model in models)]
    labels = list(dict.fromkeys(model["label"] for model in models))
    figure, grid = _subplots(models, 1, max(1, len(distances)), width=4.4, height=3.3)
    for axes, distance in zip(grid[0], distances, strict=True):
        chosen = [model for model in models if model["distance"] == distance]
        attacks = list(dict.fromkeys(model["attack"] for model in chosen))
        unit, xlabel = BUDGETS[distance]
        for model in chosen:
            rows = sorted(model["rows"], key=lambda row: row["eps"])
            i = labels.index(model["label"])
            axes.plot(
                [row["eps"] * unit for row in rows],
                [100 * row["accuracy"] for row in rows],
                color=COLOURS[i % len(COLOURS)],
                marker=MARKERS[i % len(MARKERS)],
                linestyle=("-", "--", ":", "-.")[attacks.index(model["attack"]) % 4],
                markersize=5,
                label=model["label"] + (f" ({model['attack']})" if attacks[1:] else ""),
                clip_on=False,
                zorder=3,
            )
        axes.set(xlabel=xlabel, ylabel="accuracy (%)", title="" if attacks[1:] else attacks[0])
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def draw_lengths(models: Models) -> Figure:
    """Quality of samples over the SGLD steps of their chains: FID, precision and recall, and the
    share read as asked where it is known; dashed, what as many training images have.

    One model {"label", "rows"}: `rows` as `evaluation.generation.compared` returns them, of chains
    and, without steps, of training images. Raises ValueError without models.
    """
    rows = [row for model in models for row in model["rows"]]
    panels = {"FID": ["fid"], "precision and recall": ["precision", "recall"]}
    if any(row.get("read_as_asked") is not None for row in rows):
        panels["read as asked"] = ["read_as_asked"]
    figure, grid = _subplots(models, 1, len(panels), width=3.1, height=2.8)
    for axes, (title, keys) in zip(grid[0], panels.items(), strict=True):
        for i, key in enumerate(keys):
            known = [row for row in rows if row.get(key) is not None]
            chains = [(row["steps"], row[key]) for row in known if row["steps"] is not None]
            line: dict[str, Any] = {"color": COLOURS[i], "label": key, "clip_on": False}
            if chains:
                axes.plot(*zip(*chains, strict=True), marker=MARKERS[i], markersize=5, **line)
            for row in known:
                if row["steps"] is None:
                    axes.axhline(row[key], color=COLOURS[i], linestyle="--", linewidth=1)
        axes.set(title=title, xlabel="SGLD steps")
        axes.set_xscale("symlog", linthresh=10)
        steps = sorted({row["steps"] for row in rows if row["steps"] is not None})
        axes.set_xticks(steps, [str(at) for at in steps])
        axes.minorticks_off()
        axes.set_xlim(0, max(1, *steps))
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        if len(keys) > 1:
            axes.legend()
    return figure


def _reliability(top: Any, below: Any, model: Mapping[str, Any], *, first: bool) -> None:
    bins = [b for b in model["bins"] if b["count"]]
    if not bins:
        raise ValueError(f"{model['label']} has no images in any bin")
    left, count, confidence, accuracy = (
        np.array([b[key] for b in bins]) for key in ("lower", "count", "confidence", "accuracy")
    )
    width = np.array([b["upper"] for b in bins]) - left
    share = count / count.sum()
    edge: dict[str, Any] = {"align": "edge", "width": width, "linewidth": 0.5}
    top.bar(left, accuracy, color=BAR, edgecolor="white", label="accuracy of a bin", **edge)
    gap: dict[str, Any] = {"facecolor": GAP + "40", "edgecolor": GAP, "hatch": "////", **edge}
    top.bar(left, confidence - accuracy, bottom=accuracy, label="gap to its confidence", **gap)
    top.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1)
    numbers = f"accuracy {100 * model['accuracy']:.1f} %, ECE {100 * model['ece']:.1f} %"
    top.set(title=f"{model['label']}\n{numbers}", xlim=(0, 1), ylim=(0, 1))

    below.bar(left, 100 * share, color="#bbbbbb", edgecolor="white", **edge)
    mean = (share * confidence).sum()
    below.axvline(model["accuracy"], color=BAR, linewidth=1.5, label="mean accuracy")
    below.axvline(mean, color=GAP, linewidth=1.5, linestyle="--", label="mean confidence")
    below.set(xlabel="confidence", xlim=(0, 1))
    for axis in (top.xaxis, top.yaxis, below.xaxis):
        axis.set_ticks(np.arange(6) / 5)
    if first:
        top.set_ylabel("accuracy")
        below.set_ylabel("images (%)")


def _filled(
    axes: Any, scores: np.ndarray, edges: np.ndarray, colour: str, title: str, *, alpha: float
) -> None:
    """Draw a histogram whose area is the share of the scores within the edges."""
    density = np.histogram(scores, edges)[0] / (len(scores) * np.diff(edges))
    line = {"edgecolor": colour, "linewidth": 1.2}
    axes.stairs(density, edges, fill=True, facecolor=(colour, alpha), label=title, **line)


def _titles(model: Mapping[str, Any]) -> list[str]:
    return [title for title, *_ in (model["in"], *model["out"])]


def _arranged(n: int) -> tuple[int, int]:
    """Return rows and columns for n panels, as equally long as PER_ROW allows; (1, 1) for none."""
    rows = max(1, math.ceil(n / PER_ROW))
    return rows, max(1, math.ceil(n / rows))


def _shared_bins(sets: Sequence[np.ndarray], n: int = 60) -> np.ndarray:
    low, high = (pick(np.quantile(s, q) for s in sets) for pick, q in ((min, 0.005), (max, 0.995)))
    if high - low <= 1e-9 * max(abs(low), abs(high), 1):  # every score is the same
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, n + 1)


def _row_label(axes: Any, label: str) -> None:
    """Write the model's name left of the axis label, wherever the layout puts that."""
    axes.annotate(
        label,
        xy=(0, 0.5),
        xycoords=axes.yaxis.label,
        xytext=(-4, 0),
        textcoords="offset points",
        rotation=90,
        ha="right",
        va="center",
        weight="bold",
        fontsize=10 * min(1, 18 / max(len(label), 1)),  # 18 letters are as long as a panel is high
    )


def _subplots(
    models: Models, rows: int, columns: int, width: float, height: float, **ratios: Any
) -> tuple[Figure, np.ndarray]:
    """Return a figure with rows x columns axes of the given size in inches."""
    if not models:
        raise ValueError("there are no models to draw")
    figure = new_figure(width * columns + 0.5, height * rows + 0.3)
    return figure, figure.subplots(rows, columns, squeeze=False, **ratios)


def _save(draw: Callable[..., Figure], path: Path, models: Models, **options: Any) -> list[Path]:
    from matplotlib import rc_context

    with rc_context(STYLE):
        return save_twice(draw(models, **options), path)


save_histograms = partial(_save, draw_histograms)
save_reliability = partial(_save, draw_reliability)
save_robustness = partial(_save, draw_robustness)
save_lengths = partial(_save, draw_lengths)
