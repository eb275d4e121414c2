"""Write a table, or a page of several, as Markdown, CSV or LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from reports.page.markup import TEMPLATES, TEXTS
from reports.tables.about import COLUMNS
from reports.tables.table import Number, Table
from reports.tables.titles import column_title, digits
from runs import screen

PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
LATEX = {  # character -> its form in LaTeX
    **{char: "\\" + char for char in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''"},
    **{PLUS_MINUS: r"$\pm$", "\N{INFINITY}": r"$\infty$", "\N{EN DASH}": "--"},
}
CSV_COLUMNS = (
    *("table", "scale", "model", "experiment", "block", "column", "paper", "paper_std"),
    *("mean", "std", "seeds", "state", *COLUMNS),
)


def grids(table: Table) -> list[tuple[str, list[list[str]]]]:
    """Return each block's title, and its head and rows of texts."""
    blocks = []
    for title, keys in table.blocks:
        columns = [["Model", *(row.model for row in table.rows)]]
        for key in keys:
            numbers = [row.numbers[key] for row in table.rows]
            head, ours = column_title(key), [value_text(n, key) for n in numbers]
            if any(number.paper is not None for number in numbers):
                columns.append([f"{head}, paper", *map(paper_text, numbers)])
                head += ", ours"
            columns.append([head, *ours])
        blocks += [(title, [list(line) for line in zip(*columns, strict=True)])] if keys else []
    return blocks


def origin(table: Table) -> list[list[str]]:
    """Return head and rows of texts about how the rows were made."""
    rows = [[row.model, *(row.about.get(key, "-") for key in COLUMNS)] for row in table.rows]
    return [["Model", *COLUMNS.values()], *rows]


def paper_text(number: Number) -> str:
    """Write the paper's number as it is printed there: .8 as 0.80, .995 as 0.995."""
    texts = [_printed(value) for value in (number.paper, number.paper_std) if value is not None]
    return f" {PLUS_MINUS} ".join(texts) or "-"


def _printed(value: float) -> str:
    if abs(value) >= 2:  # percent, FID, Inception Score
        return f"{value:g}" if value % 1 else f"{value:.1f}"
    return f"{value:.2f}" if round(value, 2) == value else f"{value:g}"


def value_text(number: Number, key: str) -> str:
    """Write mean, standard deviation and, in brackets, the number of seeds; or the state."""
    if number.mean is None:
        return number.state or "-"
    d = digits(key)
    spread = "" if number.std is None else f" {PLUS_MINUS} {number.std:.{d}f}"
    return f"{number.mean:.{d}f}{spread} ({number.n})"


def markdown(template: str, **values: object) -> str:
    """Write a page; pictures' paths are relative to `base`. Without `folds`, as for a terminal, the
    folded parts are shown under their titles."""
    page = TEXTS.get_template(template).render(**values)
    return re.sub(r"\n{3,}", "\n\n", page).strip("\n") + "\n"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table with aligned columns; the first row is the head."""
    columns = [str(i) for i in range(len(rows[0]))]
    head, *lines = (dict(zip(columns, map(line, row), strict=True)) for row in rows)
    return screen.markdown(lines, columns, headers=head)


def line(text: str) -> str:
    """Return the text on one line, with tags escaped: Markdown would let HTML through."""
    return " ".join(text.split()).replace("<", "&lt;").replace("*", r"\*")


def csv_text(table: Table) -> str:
    """Write a line for each number: table, model, column, the paper's, ours, the row's origin."""
    file = io.StringIO()
    writer = csv.DictWriter(file, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in table.rows:
        of_row: dict[str, Any] = {"table": table.name, "scale": table.scale, "model": row.model}
        of_row |= row.about | {"experiment": ", ".join(row.experiments)}
        for block, key in ((title, key) for title, keys in table.blocks for key in keys):
            n = row.numbers[key]
            values = {"paper": n.paper, "paper_std": n.paper_std, "mean": n.mean, "std": n.std}
            texts = {name: f"{value:g}" for name, value in values.items() if value is not None}
            cell = {"block": block, "column": key, "state": n.state, "seeds": n.n or ""}
            writer.writerow(of_row | cell | texts)
        if not row.numbers:
            writer.writerow(of_row)
    return file.getvalue()


def latex(table: Table) -> str:
    """Write a `table` for each block, with the notes under the first. It needs booktabs, and
    graphicx, which scales wide tables."""
    return TEXTS.get_template("table.tex.jinja").render(table=table)


def tex(text: str) -> str:
    return "".join(LATEX.get(char, char) for char in " ".join(text.split()))


TEMPLATES.filters |= dict(aligned=aligned, grids=grids, line=line, origin=origin, tex=tex)
FORMATS: dict[str, Callable[..., str]] = {
    "md": partial(markdown, "table.md.jinja", folds=False),
    "csv": csv_text,
    "tex": latex,
}
