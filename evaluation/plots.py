"""Pictures: sample grids and a run's curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluation.sampling import to_uint8
from runs.style import new_figure, save_twice

GAP = 2  # black pixels around the images of a grid


def grid(images: Tensor, columns: int | None = None, gap: int = GAP) -> Tensor:
    """Return images (n, 3, h, w), clipped to [-1, 1], row by row in a picture uint8 (H, W, 3)."""
    n, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    picture = torch.zeros(
        rows * (height + gap) + gap, columns * (width + gap) + gap, channels, dtype=torch.uint8
    )
    for i, image in enumerate(to_uint8(images).cpu()):
        top, left = (gap + (i // columns) * (height + gap), gap + (i % columns) * (width + gap))
        picture[top : top + height, left : left + width] = image
    return picture


def save_grid(images: Tensor, path: Path, columns: int | None = None) -> Tensor:
    """Write the grid as PNG, enlarged so that small images can be seen. Return the grid."""
    from PIL import Image

    picture = grid(images, columns)
    image = Image.fromarray(picture.numpy())
    image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST).save(path)
    return picture


def save_labelled_grid(
    images: Tensor,
    path: Path,
    *,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    columns: int | None = None,
    xlabel: str = "",
) -> list[Path]:
    """Write the grid with words beside it as PNG and PDF, `path` plus those suffixes; return both.

    For one class a row (its name and number of samples) and for trajectories (the SGLD steps over
    the columns, one chain a row). `columns` is by default the number of `column_labels`. Raises
    ValueError unless there is one label a row and one a column, or none.
    """
    columns = columns or len(column_labels) or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    for labels, places, name in ((row_labels, rows, "rows"), (column_labels, columns, "columns")):
        if len(labels) not in (0, places):
            raise ValueError(f"{len(labels)} labels for {places} {name}")
    inch = min(0.55, 7.5 / columns)  # of an image; the whole fits a page
    figure = new_figure(inch * columns + 1.0, inch * rows + 0.5)
    axes = figure.subplots()
    _show_grid(axes, images, columns, row_labels)
    axes.set_xticks(_middles(len(column_labels), images.shape[3]), column_labels)
    axes.set_xlabel(xlabel, fontsize=9)
    return save_twice(figure, path, bbox_inches="tight")


def save_side_by_side(
    grids: Mapping[str, Tensor], path: Path, *, columns: int, row_labels: Sequence[str] = ()
) -> list[Path]:
    """Write grids of as many images (n, 3, h, w) each, in one order, beside each other under their
    names, as PNG and PDF; `row_labels` stand left of the first."""
    rows = math.ceil(max(map(len, grids.values())) / columns)
    inch = min(0.55, 7.5 / (columns * len(grids)))
    figure = new_figure((inch * columns + 0.1) * len(grids) + 0.3, inch * rows + 0.5)
    all_axes: Any = figure.subplots(1, len(grids), squeeze=False)
    for i, (name, images) in enumerate(grids.items()):
        axes = all_axes[0, i]
        _show_grid(axes, images, columns, () if i else row_labels)
        axes.set_xticks([])
        axes.set_xlabel(name, fontsize=9)
    return save_twice(figure, path, bbox_inches="tight")


def _show_grid(axes: Any, images: Tensor, columns: int, row_labels: Sequence[str]) -> None:
    axes.imshow(grid(images, columns).numpy(), interpolation="nearest")
    axes.set_yticks(_middles(len(row_labels), images.shape[2]), row_labels)
    axes.tick_params(length=0, labelsize=9, labeltop=True, labelbottom=False)
    axes.xaxis.set_label_position("top")
    axes.spines[:].set_visible(False)


def _middles(n: int, size: int) -> list[float]:
    """Return where the middles of a grid's first n images of `size` pixels are, in pixels."""
    return [GAP + (size + GAP) * i + (size - 1) / 2 for i in range(n)]


def save_curves(rows: list[dict[str, str]], path: Path) -> None:
    """Draw accuracy, losses, energies and speed over epochs, from the rows of progress.csv."""
    names = [name for name in rows[0] if any(row[name] for row in rows)]
    chosen: dict[str, list[str]] = {
        "accuracy": [n for n in ("train_acc", "valid_acc", "test_acc") if n in names],
        "loss": [n for n in names if n.endswith("loss")],
        "log q(x)": [n for n in names if "/log_q_" in n],
        "learning rate": ["lr"],
    }
    panels = {title: columns for title, columns in chosen.items() if columns}
    figure = new_figure(4.2 * len(panels), 3.4)
    all_axes: Any = figure.subplots(1, len(panels), squeeze=False)
    for axes, (title, columns) in zip(all_axes[0], panels.items(), strict=True):
        for column in columns:
            points = [(int(row["epoch"]), float(row[column])) for row in rows if row[column]]
            x, y = zip(*points, strict=True)
            axes.plot(x, y, label=column, marker="." if len(x) < 30 else None)
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        if columns == ["lr"]:
            axes.set_ylim(bottom=0)
        if len(columns) > 1:
            axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)
