"""AUROC, FPR95 and AUPR against counts of pairs and thresholds; the tables that show them."""

import numpy as np
import pytest

from evaluation import NotFinite
from evaluation.scores import detection
from runs.screen import markdown, reversed_order


def made_up(kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return in- and out-of-distribution scores whose means are one standard deviation apart."""
    random = np.random.RandomState(seed)
    inside, outside = random.randn(83) + 1, random.randn(41)
    if kind == "log density":
        return 300 + 50 * inside, 300 + 50 * outside
    if kind == "probability":
        return 1 / (1 + np.exp(-inside)), 1 / (1 + np.exp(-outside))
    if kind == "ties":
        return 300 + 50 * np.round(inside), 300 + 50 * np.round(outside)
    return 1 - 1e-15 * np.round(5 - inside), 1 - 1e-15 * np.round(5 - outside)  # "saturated"


@pytest.mark.parametrize("kind", ["log density", "probability", "ties", "saturated"])
@pytest.mark.parametrize("seed", range(2))
def test_detection_equals_counts_of_pairs_and_thresholds(kind, seed):
    inside, outside = made_up(kind, seed)
    tied = len(np.intersect1d(inside, outside)) > 0
    assert tied == (kind in ("ties", "saturated"))
    pairs = [(a > b) + (a == b) / 2 for a in inside for b in outside]
    rates, area, recall = [], 0.0, 0.0
    for threshold in sorted({*inside, *outside}, reverse=True):
        hits, alarms = np.sum(inside >= threshold), np.sum(outside >= threshold)
        area += hits / (hits + alarms) * (hits / len(inside) - recall)
        recall = hits / len(inside)
        rates += [alarms / len(outside)] if recall >= 0.95 else []
    expected = {"auroc": np.mean(pairs), "fpr95": min(rates), "aupr": area, "n_in": 83, "n_out": 41}
    assert detection(inside, outside) == pytest.approx(expected, abs=1e-12)


def test_fpr95_is_at_a_threshold_that_exactly_95_percent_reach():
    inside = np.arange(20.0)
    assert detection(inside, np.array([0.5]))["fpr95"] == 0.0  # 19 of 20 are above
    assert detection(inside, np.array([1.5]))["fpr95"] == 1.0  # 18 of 20 are above
    # The curve is the diagonal, on which no threshold is a corner; 19 of 20 reach the threshold 1.
    assert detection(inside, inside)["fpr95"] == 0.95


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(NotFinite, match=r"^2 of 4 OOD scores are not finite$"):
        detection(np.zeros(3), np.array([0, np.nan, 1, -np.inf]))
    with pytest.raises(NotFinite, match=r"^1 of 1 in-distribution scores are not finite$"):
        detection(np.array([np.inf]), np.zeros(3))


def test_a_markdown_table_aligns_rounds_and_escapes_its_cells():
    assert markdown([], ["set", "n"]) == "| set | n   |\n| --- | --- |"
    rows = [{"a": 1, "b": None, "c": "x|y\nz", "d": 0.12345}, {"a": 20, "b": "t", "d": None}]
    assert markdown(rows, list("abcd"), headers={"d": "D"}, digits=2).splitlines() == [
        "|   a | b   | c      |    D |",
        "| --: | --- | ------ | ---: |",
        "|   1 | -   | x\\|y z | 0.12 |",
        "|  20 | t   | -      |    - |",
    ]


def test_an_order_that_is_reversed_is_explained():
    rows = [
        {"ood_dataset": name, "score_fn": score, "auroc": value}
        for name, score, value in (("svhn", "px", 0.5), ("noise", "px", 0.0), ("noise", "py", 0.4))
    ]
    note = reversed_order(rows)
    assert note and note.startswith("AUROC below 0.5 (px: noise; py: noise): the model scores")
    # which may be another split or set than the model's own test images
    assert "higher than the in-distribution images, in most pairs; at 0, in all" in note
    note = reversed_order([{**row, "model": "JEM"} for row in rows])
    assert note and note.startswith("AUROC below 0.5 (JEM, px: noise; JEM, py: noise)")
    assert reversed_order(rows[:1]) is None
