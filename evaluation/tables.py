"""Rows of numbers as tables that are valid Markdown and line up on a screen too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
MEASURED = ("samples", "starts", "data")


def markdown(
    rows: Sequence[Row],
    columns: Sequence[str],
    *,
    headers: Mapping[str, str] | None = None,
    digits: int = 4,
) -> str:
    """A Markdown table of the rows' `columns`, padded to one width a column, without last newline.

    A column whose values are all numbers is right-aligned; floats have `digits` decimals. A value
    that is missing or None is "-". `headers` gives a column's title where it is not its key.
    """
    titles = [escaped((headers or {}).get(column, column)) for column in columns]
    lines = [[cell(row.get(column), digits) for column in columns] for row in rows]
    right = [all_numbers([row.get(column) for row in rows]) for column in columns]
    widths = [
        max(3, *(len(line[i]) for line in [titles, *lines]))  # a rule has 3 characters at least
        for i in range(len(columns))
    ]
    rule = ["-" * (w - 1) + ":" if r else "-" * w for w, r in zip(widths, right, strict=True)]

    def aligned(cells: Sequence[str]) -> str:
        padded = [
            c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)
        ]
        return f"| {' | '.join(padded)} |"

    return "\n".join(aligned(line) for line in [titles, rule, *lines])


def ood_table(rows: Sequence[Row]) -> str:
    """One line for each OOD set and score; of several models, whose rows have a "model", for each.

    Rows have ood_dataset, score_fn and the keys of `evaluation.ood.detection`. Rates are 0..1.
    """
    shown = [{**row, "ratio": f"{row['n_in']}:{row['n_out']}"} for row in rows]
    columns = ["ood_dataset", "score_fn", "auroc", "fpr95", "aupr", "ratio"]
    if any("model" in row for row in rows):
        columns = ["model", *columns]
    headers = {
        "model": "Model",
        "ood_dataset": "OOD set",
        "score_fn": "Score",
        "auroc": "AUROC",
        "fpr95": "FPR95",
        "aupr": "AUPR",
        "ratio": "in:out",
    }
    return markdown(shown, columns, headers=headers)


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


def reversed_order(rows: Sequence[Row]) -> str | None:
    """Name the scores and OOD sets whose AUROC is below .5 and say what that means; None without
    any. Rows as those of `ood_table`."""
    below: dict[str, list[str]] = {}
    for row in rows:
        if row["auroc"] < 0.5:
            score = f"{row['model']}, {row['score_fn']}" if "model" in row else row["score_fn"]
            below.setdefault(score, []).append(row["ood_dataset"])
    if not below:
        return None
    listed = "; ".join(f"{score}: {', '.join(sets)}" for score, sets in below.items())
    return (
        f"AUROC below 0.5 ({listed}): the model scores these images higher than its own test "
        "images; 0 means that each of them is above all of its own. Where the score is px, it "
        "gives them the higher density q(x)."
    )


def cell(value: Any, digits: int) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if isinstance(value, float) else escaped(str(value))


def escaped(text: str) -> str:
    """What Markdown would read as the end of a cell or of a row."""
    return " ".join(text.split()).replace("|", r"\|")


def all_numbers(values: Sequence[Any]) -> bool:
    """Some number, and apart from None nothing else."""
    present = [value for value in values if value is not None]
    return bool(present) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in present
    )
