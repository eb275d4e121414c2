"""Pictures of samples and curves of a run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.plots import (
    grid,
    save_curves,
    save_grid,
    save_labelled_grid,
    save_side_by_side,
)


def test_images_fill_the_grid_row_by_row() -> None:
    values = torch.tensor([10, 20, 30, 40, 50])
    shades = (values / 127.5 - 1)[:, None, None, None].expand(-1, 3, 4, 3)
    picture = grid(shades, columns=3, gap=2)
    assert picture.shape == (2 * 6 + 2, 3 * 5 + 2, 3) and picture.dtype == torch.uint8
    expected = torch.zeros(14, 17, dtype=torch.uint8)
    for value, top, left in [(10, 2, 2), (20, 2, 7), (30, 2, 12), (40, 8, 2), (50, 8, 7)]:
        expected[top : top + 4, left : left + 3] = value
    assert torch.equal(picture, expected[:, :, None].expand(-1, -1, 3))


def test_pixels_and_channels_keep_their_places_and_values_are_clipped() -> None:
    image = torch.rand(1, 3, 4, 3) * 4 - 2
    inside = grid(image, gap=1)[1:-1, 1:-1]
    expected = ((image[0].permute(1, 2, 0).clamp(-1, 1) + 1) * 127.5).round()
    assert torch.equal(inside, expected.byte())


@pytest.mark.parametrize(
    ("n", "columns", "shape"),
    [(9, None, (3, 3)), (7, None, (3, 3)), (7, 7, (1, 7)), (1, 4, (1, 4))],
)
def test_without_columns_the_grid_is_about_square(
    n: int, columns: int | None, shape: tuple[int, int]
) -> None:
    picture = grid(torch.zeros(n, 3, 4, 4), columns, gap=0)
    assert picture.shape == (4 * shape[0], 4 * shape[1], 3)


def test_a_saved_grid_is_the_grid_twice_as_large(tmp_path: Path) -> None:
    picture = save_grid(torch.rand(4, 3, 8, 8, requires_grad=True) * 2 - 1, tmp_path / "grid.png")
    saved = np.array(Image.open(tmp_path / "grid.png"))
    assert np.array_equal(saved, picture.numpy().repeat(2, 0).repeat(2, 1))


def test_grids_with_words_are_written_twice_and_want_all_their_labels(tmp_path: Path) -> None:
    images = torch.rand(6, 3, 32, 32)
    words: dict[str, Any] = {"row_labels": ["cat", "dog"], "column_labels": ["0", "5", "10"]}
    written = [
        save_labelled_grid(images, tmp_path / "v1.5", xlabel="SGLD steps", **words),
        save_side_by_side({"start": images, "sample": images}, tmp_path / "v1.6", columns=3),
    ]
    assert [[p.name for p in pair] for pair in written] == [
        [f"v1.{i}.png", f"v1.{i}.pdf"] for i in (5, 6)
    ]
    for png, pdf in written:
        assert png.read_bytes()[:4] == b"\x89PNG" and pdf.read_bytes()[:4] == b"%PDF"
    for wrong in ({"row_labels": ["cat"]}, {"columns": 2}):
        with pytest.raises(ValueError, match="labels for"):
            save_labelled_grid(images, tmp_path / "bad", **(words | wrong))


def row(epoch: int, **columns: str) -> dict[str, str]:
    return {"epoch": str(epoch), "lr": "0.0001", "loss": "2.5"} | columns


@pytest.mark.parametrize(
    "rows",
    [
        [row(0, valid_acc="", train_acc="0.5"), row(1, valid_acc="0.7", train_acc="0.6")],
        [{**row(i), "pxsgld/loss": "nan", "pxsgld/log_q_data": "1e9"} for i in range(40)],
        [row(0, valid_acc="", test_acc="")],
    ],
    ids=["evaluated now and then", "diverging", "never evaluated"],
)
def test_curves_are_drawn_from_the_text_of_progress(
    rows: list[dict[str, str]], tmp_path: Path
) -> None:
    save_curves(rows, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        pixels = np.array(image.convert("RGB"))
    assert image.format == "PNG" and min(pixels.shape[:2]) > 200
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20  # something is drawn
