"""Pictures: files are written, and figures draw the values that they are given."""

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from PIL import Image

from evaluation import figures

Model = dict[str, Any]


def histogram_model(sets: int = 2, label: str = "HDGE", shift: float = 0.0) -> Model:
    rng = np.random.default_rng(0)
    out = [(f"set{i} test", rng.normal(300 + shift, 30, 300), 0.5 + i / 10) for i in range(sets)]
    inside = ("cifar10 train", rng.normal(350, 50, 500), None)
    return {"label": label, "sets": [inside, *out]}


def reliability_model(label: str = "HDGE") -> Model:
    """Return four bins: the first empty, the second over-confident, the last under-confident."""
    rows = [(0.0, 0, None, None), (0.25, 10, 0.4, 0.1), (0.5, 30, 0.7, 0.7), (0.75, 60, 0.8, 0.95)]
    names = ("lower", "count", "confidence", "accuracy")
    bins = [dict(zip(names, row, strict=True)) | {"upper": row[0] + 0.25} for row in rows]
    return {"label": label, "accuracy": 0.79, "ece": 0.12, "bins": bins}


def robustness_model(label: str = "CE") -> Model:
    rows = [{"eps": 8 / 255, "accuracy": 0.25}, {"eps": 0.0, "accuracy": 0.75}]
    return {"label": label, "rows": rows}


def lengths() -> list[Model]:
    """Return chains of 0, 20 and 1000 steps, the last without recall, and real images."""
    values = [(0, 300.0, 0.1, 0.0), (20, 80.0, 0.5, 0.25), (1000, 90.0, 0.4, None)]
    values += [(None, 5.0, 0.75, 0.7)]
    return [{"steps": n, "fid": fid, "precision": p, "recall": q} for n, fid, p, q in values]


NAME = r"run $\x$ v1.2"  # not a formula


@pytest.mark.parametrize(
    ("draw", "args"),
    [
        (figures.draw_histograms, [[histogram_model(label=NAME)]]),
        (figures.draw_reliability, [[reliability_model(NAME)]]),
        (figures.draw_robustness, [[robustness_model(NAME)], "L2", NAME]),
        (figures.draw_lengths, [lengths()]),
    ],
)
def test_png_and_pdf_are_written_the_same_every_time(draw, args, tmp_path):
    first, second = (figures.save(tmp_path / name, draw, *args) for name in ("v1.2", "again"))
    assert first == [tmp_path / "v1.2.png", tmp_path / "v1.2.pdf"]
    assert sorted(tmp_path.iterdir()) == sorted(first + second)
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    assert first[1].read_bytes().startswith(b"%PDF")
    pixels = np.asarray(Image.open(first[0]).convert("L"))
    assert pixels.shape[0] > 300 and pixels.shape[1] > 400 and pixels.std() > 10


def colour(patch: Any) -> str:
    return to_hex(patch.get_facecolor()[:3])


def test_histograms_are_densities_in_bins_that_a_row_shares():
    models = [histogram_model(2, "CE"), histogram_model(2, "HDGE", shift=-1000)]
    axes = figures.draw_histograms(models).axes
    assert len(axes) == 4
    for i, panel in enumerate(axes):
        model, (_, scores, auroc) = models[i // 2], models[i // 2]["sets"][1 + i % 2]
        (values_in, edges, _), (values_out, _, _) = (s.get_data() for s in panel.patches)
        assert [colour(s) for s in panel.patches] == [figures.IN, figures.OUT]
        sets = [scores for _, scores, _ in model["sets"]]
        assert edges[0] == min(np.quantile(s, 0.005) for s in sets)
        assert edges[-1] == pytest.approx(max(np.quantile(s, 0.995) for s in sets))
        assert len(edges) == 61
        for values, drawn in ((values_in, sets[0]), (values_out, scores)):
            share = np.mean((drawn >= edges[0]) & (drawn <= edges[-1]))
            assert np.sum(values * np.diff(edges)) == pytest.approx(share)
        third = np.mean((scores >= edges[20]) & (scores < edges[40]))
        assert np.sum((values_out * np.diff(edges))[20:40]) == pytest.approx(third)
        assert panel.get_ylim()[1] > max(values_in.max(), values_out.max())
        assert panel.texts[0].get_text() == f"AUROC {auroc:.3f}"
    legends = [panel.get_legend() for panel in axes]
    assert legends[2] is None and legends[3] is None  # as in the row above
    assert [t.get_text() for t in legends[1].get_texts()] == ["cifar10 train", "set1 test"]
    assert [panel.get_ylabel() for panel in axes[1:]] == ["", "HDGE\ndensity", ""]


def test_equal_scores_are_drawn():
    sets = [("a", np.full(5, 7.0), None), ("b", np.full(3, 7.0), 0.5)]
    (panel,) = figures.draw_histograms([{"label": "x", "sets": sets}]).axes
    values, edges, _ = panel.patches[0].get_data()
    assert edges[0] < 7 < edges[-1] and np.sum(values * np.diff(edges)) == pytest.approx(1)


def test_reliability_bars_end_at_the_accuracy_and_gaps_at_the_confidence():
    axes: Any = figures.draw_reliability([reliability_model("CE"), reliability_model("HDGE")]).axes
    top, below = axes[1], axes[3]
    bars, gaps = (container.patches for container in top.containers)
    boxes = [(bar.get_x(), bar.get_width(), bar.get_height()) for bar in bars]
    assert boxes == [(0.25, 0.25, 0.1), (0.5, 0.25, 0.7), (0.75, 0.25, 0.95)]
    ends: Any = [(gap.get_y(), gap.get_y() + gap.get_height()) for gap in gaps]
    np.testing.assert_allclose(ends, [(0.1, 0.4), (0.7, 0.7), (0.95, 0.8)])
    assert {colour(gap) for gap in gaps} == {figures.GAP} and gaps[0].get_hatch()
    assert top.lines[0].get_xydata().tolist() == [[0, 0], [1, 1]]
    assert top.get_title() == "HDGE\naccuracy 79.0 %, ECE 12.0 %"
    shares = [bar.get_height() for bar in below.containers[0].patches]
    assert shares == pytest.approx([10, 30, 60])
    accuracy, confidence = (line.get_xdata()[0] for line in below.lines)
    assert accuracy == 0.79 and confidence == pytest.approx(0.1 * 0.4 + 0.3 * 0.7 + 0.6 * 0.8)


def test_robustness_is_in_percent_against_the_radius_in_its_unit():
    models = [robustness_model("CE"), robustness_model("JEM")]
    for distance, unit, radius in (("Linf", "1/255", 8), ("L2", "[0, 1]", 8 / 255)):
        (axes,) = figures.draw_robustness(models, distance, "PGD").axes
        assert unit in axes.get_xlabel() and axes.get_title() == "PGD"
        assert axes.lines[0].get_xydata().tolist() == [[0, 75], [radius, 25]]
        assert [line.get_label() for line in axes.lines] == ["CE", "JEM"]
        assert len({line.get_color() for line in axes.lines}) == 2


def test_lengths_are_drawn_over_the_steps_and_real_images_dashed():
    rows = lengths()
    panels: Any = figures.draw_lengths(rows).axes
    fid, precision_recall = panels
    chain, real = fid.get_lines()
    assert list(chain.get_xdata()) == [0, 20, 1000] and list(chain.get_ydata()) == [300, 80, 90]
    assert set(real.get_ydata()) == {5.0} and real.get_linestyle() == "--"
    assert [text.get_text() for text in fid.get_xticklabels()] == ["0", "20", "1000"]
    assert list(precision_recall.get_lines()[2].get_ydata()) == [0.0, 0.25]
    for row in rows:
        row["read_as_asked"] = None if row["steps"] is None else 0.5
    assert [axes.get_title() for axes in figures.draw_lengths(rows).axes][2:] == ["read as asked"]


def test_images_fill_the_grid_row_by_row():
    values = torch.tensor([10, 20, 30, 40, 50])
    shades = (values / 127.5 - 1)[:, None, None, None].expand(-1, 3, 4, 3)
    assert figures.grid(torch.rand(7, 3, 4, 3)).shape == (3 * 6 + 2, 3 * 5 + 2, 3)
    picture = figures.grid(shades, columns=3)
    assert picture.shape == (2 * 6 + 2, 3 * 5 + 2, 3) and picture.dtype == torch.uint8
    expected = torch.zeros(14, 17, dtype=torch.uint8)
    for value, top, left in [(10, 2, 2), (20, 2, 7), (30, 2, 12), (40, 8, 2), (50, 8, 7)]:
        expected[top : top + 4, left : left + 3] = value
    assert torch.equal(picture, expected[:, :, None].expand(-1, -1, 3))


def test_a_saved_grid_is_the_grid_twice_as_large(tmp_path):
    images = torch.rand(4, 3, 8, 8, requires_grad=True) * 2 - 1
    picture = figures.save_grid(tmp_path / "grid.png", images)
    saved = np.array(Image.open(tmp_path / "grid.png"))
    assert np.array_equal(saved, picture.numpy().repeat(2, 0).repeat(2, 1))


def test_names_are_no_formulas_and_leave_room_for_the_images(tmp_path):
    names = [r"$\frac$", "a class whose name is longer than its row of images", *"abcdefgh"]
    images = torch.rand(30, 3, 8, 8)
    figures.save_grid(tmp_path / "grid.png", images, 3, names)  # an invalid formula
    figures.save(tmp_path / "grids", figures.draw_grids, {"": images}, columns=3, row_labels=names)
    figure = figures.draw_grids({"": images}, columns=3, row_labels=["", *names[1:]])
    figure.draw_without_rendering()
    assert figure.axes[0].get_window_extent().width > 1.5 * figure.dpi  # inches
    models = [robustness_model("_a"), robustness_model("b")]
    (axes,) = figures.draw_robustness(models, "L2", "PGD").axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["_a", "b"]
    inside, outside = histogram_model(1)["sets"]
    model = {"label": "CE", "sets": [("_c", *inside[1:]), outside]}
    legend = figures.draw_histograms([model]).axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["_c", "set0 test"]


def test_every_term_has_a_panel():
    terms = {"pyxce/loss": "2", "pxsgld/loss": "-.1", "valid_loss": "2.1", "valid_acc": ".25"}
    names = ["accuracy (%)", "cross-entropy (nats)", "loss", "pxsgld/loss", "learning rate"]
    axes: Any = figures.draw_curves([row(0, **terms)]).axes
    assert [panel.get_ylabel() for panel in axes] == names
    assert axes[0].lines[0].get_ydata() == [25] and len(axes[1].lines) == 2
    del terms["pxsgld/loss"]  # the sum is of one term
    labels = [panel.get_ylabel() for panel in figures.draw_curves([row(0, **terms)]).axes]
    assert labels == [name for name in names if "loss" not in name]


def row(epoch: int, **columns: str) -> dict[str, str]:
    return {"epoch": str(epoch), "lr": "0.0001", "loss": "2.5"} | columns


@pytest.mark.parametrize(
    "rows",
    [
        [row(0, valid_acc="", train_acc="0.5"), row(1, valid_acc="0.7", train_acc="0.6")],
        [{**row(i), "pxsgld/loss": "nan", "pxsgld/log_q_data": "1e9"} for i in range(40)],
        [row(0, valid_acc="", test_acc="")],
    ],
    ids=["evaluated in some epochs", "diverging", "never evaluated"],
)
def test_curves_are_drawn_from_the_text_of_progress(rows, tmp_path):
    figures.save_curves(tmp_path / "curves.png", rows)
    with Image.open(tmp_path / "curves.png") as image:
        pixels = np.array(image.convert("RGB"))
    assert image.format == "PNG" and min(pixels.shape[:2]) > 200
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20  # not blank
