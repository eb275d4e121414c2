"""Set the look of all pictures: matplotlib's settings, colours, markers. Imports nothing slow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
    "text.parse_math": False,  # a dollar in a run's name is a dollar
    "pdf.fonttype": 42,  # outlines that journals accept, and text that can be searched
}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe-Ito
MARKERS = "osD^vPX"
BUDGETS = {  # attack's distance -> (factor from radius to axis, label of the axis)
    "Linf": (255, "L∞ radius ε, in 1/255 of the pixel range"),
    "L2": (1, "L2 radius ε, pixels in [0, 1]"),
}


def radius(eps: float, distance: str) -> str:
    """Format an attack's radius, for pixels in [0, 1]: 8/255 for Linf, 0.25 for L2."""
    return f"{255 * eps:.4g}/255" if distance == "Linf" else f"{eps:.4g}"


def new_figure(width: float, height: float, **padding: float) -> Figure:
    """Return an empty figure, width x height inches, without a window. padding: arguments of
    matplotlib's constrained layout."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("constrained", **padding)
    FigureCanvasAgg(figure)
    return figure
