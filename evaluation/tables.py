"""The numbers of an evaluation as tables for a screen."""

from __future__ import annotations

from collections.abc import Sequence

from runs.screen import Row, markdown

MEASURED = ("samples", "starts", "data")


def ood_table(rows: Sequence[Row]) -> str:
    """One line for each OOD set and score; of several models, whose rows have a "model", for each.

    Rows have ood_dataset, score_fn and the keys of `evaluation.ood.detection`. Rates are 0..1.
    """
    headers = {"model": "Model"} if any("model" in row for row in rows) else {}
    headers |= {"ood_dataset": "OOD set", "score_fn": "Score", "auroc": "AUROC"}
    headers |= {"fpr95": "FPR95", "aupr": "AUPR", "ratio": "in:out"}
    shown = [{**row, "ratio": f"{row['n_in']}:{row['n_out']}"} for row in rows]
    return markdown(shown, [*headers], headers=headers)


def fid_table(rows: Sequence[Row]) -> str:
    """One line for each set of images of `evaluation.generation.compared`, 60 characters wide."""
    columns = ["images", "steps", "fid", "precision", "recall"]
    if any("read_as_asked" in row for row in rows):
        columns.append("read_as_asked")
    headers = {"fid": "FID", "read_as_asked": "asked"}
    shown = [{**row, "images": row["images"].replace(" images", "")} for row in rows]
    return markdown(shown, columns, headers=headers, digits=3)


def samples_table(result: Row) -> str | None:
    """The numbers of samples, of where their chains began and of training images, a line each; None
    where there are none."""
    titles = {
        "nearest": "distance to training",
        "variety": "variety",
        "read_as_asked": "read as asked",
    }
    rows = [{"": title, **result[key]} for key, title in titles.items() if result.get(key)]
    headers = {"data": "training"}
    return markdown(rows, ["", *MEASURED], headers=headers, digits=3) if rows else None
