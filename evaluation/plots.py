"""Pictures: sample grids and a run's curves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def grid(images: Tensor, columns: int | None = None, gap: int = 2) -> Tensor:
    """Images (n, 3, h, w) in [-1, 1] (clipped) as one picture, uint8 (H, W, 3), row by row."""
    n, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    pixels = ((images.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    picture = torch.zeros(
        rows * (height + gap) + gap, columns * (width + gap) + gap, channels, dtype=torch.uint8
    )
    for i, image in enumerate(pixels):
        top, left = (gap + (i // columns) * (height + gap), gap + (i % columns) * (width + gap))
        picture[top : top + height, left : left + width] = image.permute(1, 2, 0)
    return picture


def save_grid(images: Tensor, path: Path, columns: int | None = None) -> Tensor:
    """Write the grid as PNG, enlarged so that 32 x 32 images can be seen; returns the grid."""
    from PIL import Image

    picture = grid(images, columns)
    image = Image.fromarray(picture.numpy())
    image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST).save(path)
    return picture


def save_curves(rows: list[dict[str, str]], path: Path) -> None:
    """Accuracy, losses, energies and speed over epochs, from the rows of progress.csv."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [name for name in rows[0] if any(row[name] for row in rows)]
    chosen: dict[str, list[str]] = {
        "accuracy": [n for n in ("train_acc", "valid_acc", "test_acc") if n in names],
        "loss": [n for n in names if n.endswith("loss")],
        "log q(x)": [n for n in names if "/log_q_" in n],
        "learning rate": ["lr"],
    }
    panels = {title: columns for title, columns in chosen.items() if columns}
    figure = Figure(figsize=(4.2 * len(panels), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    all_axes: Any = figure.subplots(1, len(panels), squeeze=False)
    for axes, (title, columns) in zip(all_axes[0], panels.items(), strict=True):
        for column in columns:
            points = [(int(row["epoch"]) + 1, float(row[column])) for row in rows if row[column]]
            x, y = zip(*points, strict=True)
            axes.plot(x, y, label=column, marker="." if len(x) < 30 else None)
        axes.set(title=title, xlabel="epochs done")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        if columns == ["lr"]:
            axes.set_ylim(bottom=0)
        if len(columns) > 1:
            axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)
