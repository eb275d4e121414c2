"""Pictures of results: both files are written, and what is drawn is what was given."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from evaluation import figures
from evaluation.figures import (
    GAP,
    IN,
    OUT,
    draw_histograms,
    draw_lengths,
    draw_reliability,
    draw_robustness,
)

Model = dict[str, Any]


def histogram_model(sets: int = 2, label: str = "HDGE", shift: float = 0.0) -> Model:
    rng = np.random.default_rng(0)
    out = [(f"set{i} test", rng.normal(300 + shift, 30, 300), 0.5 + i / 10) for i in range(sets)]
    return {"label": label, "in": ("cifar10 train", rng.normal(350, 50, 500)), "out": out}


def reliability_model(label: str = "HDGE") -> Model:
    """Four bins, one empty, the second over-confident, the last under-confident."""
    rows = [(0.0, 0, None, None), (0.25, 10, 0.4, 0.1), (0.5, 30, 0.7, 0.7), (0.75, 60, 0.8, 0.95)]
    names = ("lower", "count", "confidence", "accuracy")
    bins = [dict(zip(names, row, strict=True)) | {"upper": row[0] + 0.25} for row in rows]
    return {"label": label, "accuracy": 0.79, "ece": 0.12, "bins": bins}


def robustness_model(label: str = "CE", distance: str = "Linf", attack: str = "PGD") -> Model:
    rows = [{"eps": 8 / 255, "accuracy": 0.25}, {"eps": 0.0, "accuracy": 0.75}]
    return {"label": label, "distance": distance, "attack": attack, "rows": rows}


def lengths_model() -> Model:
    """Chains after 0, 20 and 1000 steps, the last one's recall unknown; and real images."""
    values = [(0, 300.0, 0.1, 0.0), (20, 80.0, 0.5, 0.25), (1000, 90.0, 0.4, None)]
    values += [(None, 5.0, 0.75, 0.7)]  # type: ignore[list-item]
    names = ("steps", "fid", "precision", "recall")
    return {"label": "HDGE", "rows": [dict(zip(names, row, strict=True)) for row in values]}


MODELS = {
    "histograms": histogram_model(),
    "reliability": reliability_model(),
    "robustness": robustness_model(),
    "lengths": lengths_model(),
}


@pytest.mark.parametrize("kind", MODELS)
def test_png_and_pdf_are_written_the_same_every_time(kind: str, tmp_path: Path) -> None:
    model = MODELS[kind] | {"label": r"run $\x$ v1.2"}  # is a name, not a formula
    save = getattr(figures, f"save_{kind}")
    first, second = (save(tmp_path / name, [model]) for name in ("v1.2", "again"))
    assert first == [tmp_path / "v1.2.png", tmp_path / "v1.2.pdf"]
    assert sorted(tmp_path.iterdir()) == sorted(first + second)
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    assert first[1].read_bytes().startswith(b"%PDF")
    pixels = np.asarray(Image.open(first[0]).convert("L"))
    assert pixels.shape[0] > 300 and pixels.shape[1] > 400 and pixels.std() > 10
    with pytest.raises(ValueError, match="no models"):
        save(tmp_path / "none", [])


def scored(*scores: float) -> Model:
    return histogram_model(0) | {"out": [("svhn test", np.array(scores), 0.5)]}


@pytest.mark.parametrize(
    "draw, model, told",
    [
        *((draw_histograms, scored(*bad), "svhn test") for bad in ((), (1, np.nan), (np.inf, 0))),
        (draw_histograms, histogram_model(0), "no OOD set"),
        (draw_reliability, reliability_model() | {"bins": [{"count": 0}]}, "no images"),
        (draw_robustness, robustness_model(distance="L1"), "CE has no rows"),
        (draw_robustness, robustness_model() | {"rows": []}, "CE has no rows"),
    ],
)
def test_wrong_input_is_refused(draw: Any, model: Model, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        draw([model])


def colour(patch: Any) -> str:
    return to_hex(patch.get_facecolor()[:3])


def test_histograms_are_densities_in_bins_that_a_row_shares() -> None:
    models = [histogram_model(2, "CE"), histogram_model(2, "HDGE", shift=-1000)]
    axes = draw_histograms(models).axes
    assert len(axes) == 4
    for i, panel in enumerate(axes):
        model, (_, scores, auroc) = models[i // 2], models[i // 2]["out"][i % 2]
        (values_in, edges, _), (values_out, _, _) = (s.get_data() for s in panel.patches)
        assert [colour(s) for s in panel.patches] == [IN, OUT]
        sets = [model["in"][1], *(scores for _, scores, _ in model["out"])]
        assert edges[0] == min(np.quantile(s, 0.005) for s in sets)
        assert edges[-1] == pytest.approx(max(np.quantile(s, 0.995) for s in sets))
        assert len(edges) == 61
        for values, given in ((values_in, sets[0]), (values_out, scores)):
            shown = np.mean((given >= edges[0]) & (given <= edges[-1]))
            assert np.sum(values * np.diff(edges)) == pytest.approx(shown)
        third = np.mean((scores >= edges[20]) & (scores < edges[40]))
        assert np.sum((values_out * np.diff(edges))[20:40]) == pytest.approx(third)
        assert panel.get_ylim()[1] > max(values_in.max(), values_out.max())
        assert panel.texts[0].get_text() == f"AUROC {auroc:.3f}"
    legends = [panel.get_legend() for panel in axes]
    assert legends[2] is None and legends[3] is None  # the row above says it
    assert [t.get_text() for t in legends[1].get_texts()] == ["cifar10 train", "set1 test"]
    assert [t.get_text() for t in axes[2].texts] == ["AUROC 0.500", "HDGE"]


def test_scores_that_are_all_the_same_are_drawn() -> None:
    model = {"label": "CE", "in": ("a", np.full(5, 7.0)), "out": [("b", np.full(3, 7.0), 0.5)]}
    patch: Any = draw_histograms([model]).axes[0].patches[0]
    values, edges, _ = patch.get_data()
    assert edges[0] < 7 < edges[-1] and np.sum(values * np.diff(edges)) == pytest.approx(1)


@pytest.mark.parametrize(("sets", "places"), [(1, (1, 1)), (4, (1, 4)), (5, (2, 3)), (7, (2, 4))])
def test_more_than_four_panels_wrap(sets: int, places: tuple[int, int]) -> None:
    axes: Any = draw_histograms([histogram_model(sets)]).axes
    assert len(axes) == sets
    assert axes[0].get_subplotspec().get_gridspec().get_geometry() == places


def test_reliability_bars_end_at_the_accuracy_and_gaps_at_the_confidence() -> None:
    axes: Any = draw_reliability([reliability_model("CE"), reliability_model("HDGE")]).axes
    top, below = axes[1], axes[3]
    bars, gaps = (container.patches for container in top.containers)
    shown = [(bar.get_x(), bar.get_width(), bar.get_height()) for bar in bars]
    assert shown == [(0.25, 0.25, 0.1), (0.5, 0.25, 0.7), (0.75, 0.25, 0.95)]
    ends: Any = [(gap.get_y(), gap.get_y() + gap.get_height()) for gap in gaps]
    np.testing.assert_allclose(ends, [(0.1, 0.4), (0.7, 0.7), (0.95, 0.8)])
    assert {colour(gap) for gap in gaps} == {GAP} and gaps[0].get_hatch()
    assert top.lines[0].get_xydata().tolist() == [[0, 0], [1, 1]]
    assert top.get_title() == "HDGE\naccuracy 79.0 %, ECE 12.0 %"
    shares = [bar.get_height() for bar in below.containers[0].patches]
    assert shares == pytest.approx([10, 30, 60])
    accuracy, confidence = (line.get_xdata()[0] for line in below.lines)
    assert accuracy == 0.79 and confidence == pytest.approx(0.1 * 0.4 + 0.3 * 0.7 + 0.6 * 0.8)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_legend_of_the_reliability_diagram_is_inside_the_picture(n: int) -> None:
    figure = draw_reliability([reliability_model()] * n)
    figure.draw_without_rendering()
    box, page = figure.legends[0].get_window_extent(), figure.bbox
    assert box.x0 >= page.x0 and box.x1 <= page.x1 and box.y1 <= page.y1
    assert len(figure.axes) == 2 * n


def test_robustness_is_in_percent_against_the_radius_in_its_unit() -> None:
    described = [("CE", "L2"), ("JEM",), ("CE", "Linf", "AutoAttack")]
    axes: Any = draw_robustness([robustness_model(*words) for words in described]).axes
    linf, l2 = axes
    assert "1/255" in linf.get_xlabel() and "[0, 1]" in l2.get_xlabel()
    assert linf.lines[0].get_xydata().tolist() == [[0, 75], [8, 25]]
    assert l2.lines[0].get_xydata().tolist() == [[0, 75], [8 / 255, 25]]
    names = [line.get_label() for line in (*linf.lines, *l2.lines)]
    assert names == ["JEM (PGD)", "CE (AutoAttack)", "CE"]
    assert (linf.get_title(), l2.get_title()) == ("", "PGD")
    jem, ce, ce_l2 = (line.get_color() for line in (*linf.lines, *l2.lines))
    assert ce == ce_l2 != jem


@pytest.mark.parametrize("label", ["CE", "m" * 40])
def test_a_long_name_of_a_row_stays_within_the_picture(label: str) -> None:
    figure: Any = draw_histograms([histogram_model(1, label)])
    figure.canvas.draw()
    (text,) = (t for axes in figure.axes for t in axes.texts if t.get_text() == label)
    box = text.get_window_extent()
    assert box.y0 >= 0 and box.y1 <= figure.bbox.height


def test_lengths_are_drawn_over_the_steps_and_real_images_dashed() -> None:
    model = lengths_model()
    axes: Any = draw_lengths([model]).axes
    fid, both = axes
    chain, real = fid.get_lines()
    assert list(chain.get_xdata()) == [0, 20, 1000] and list(chain.get_ydata()) == [300, 80, 90]
    assert set(real.get_ydata()) == {5.0} and real.get_linestyle() == "--"
    assert [text.get_text() for text in fid.get_xticklabels()] == ["0", "20", "1000"]
    assert list(both.get_lines()[2].get_ydata()) == [0.0, 0.25]
    for row in model["rows"]:
        row["read_as_asked"] = None if row["steps"] is None else 0.5
    assert [axes.get_title() for axes in draw_lengths([model]).axes][2:] == ["read as asked"]
