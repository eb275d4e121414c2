"""A table, or a page of several, as Markdown, CSV and LaTeX."""

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

# Every text of a table, with the one character that has a form of its own in LaTeX.
PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
LATEX = {
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
    """Return (title, head and rows of texts) for each block."""
    found = []
    for title, keys in table.blocks:
        columns = [["Model", *(row.model for row in table.rows)]]
        for key in keys:
            numbers = [row.numbers[key] for row in table.rows]
            shown, ours = column_title(key), [value_text(n, key) for n in numbers]
            if any(number.paper is not None for number in numbers):
                columns.append([f"{shown}, paper", *map(paper_text, numbers)])
                shown += ", ours"
            columns.append([shown, *ours])
        found += [(title, [list(line) for line in zip(*columns, strict=True)])] if keys else []
    return found


def how(table: Table) -> list[list[str]]:
    """Return head and rows of texts about how the rows were made."""
    rows = [[row.model, *(row.about.get(key, "-") for key in COLUMNS)] for row in table.rows]
    return [["Model", *COLUMNS.values()], *rows]


def paper_text(number: Number) -> str:
    """Write it as it is printed: .8 is 0.80, .995 stays."""
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
    places = digits(key)
    spread = "" if number.std is None else f" {PLUS_MINUS} {number.std:.{places}f}"
    return f"{number.mean:.{places}f}{spread} ({number.n})"


def markdown(template: str, **values: object) -> str:
    """Write a page; pictures' paths are relative to `base`. Without `folds`, as for a terminal,
    what is folded is shown under its title."""
    page = TEXTS.get_template(template).render(**values)
    return re.sub(r"\n{3,}", "\n\n", page).strip("\n") + "\n"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    columns = [str(i) for i in range(len(rows[0]))]
    found = [dict(zip(columns, map(line, row), strict=True)) for row in rows]
    return screen.markdown(found[1:], columns, headers=found[0])


def line(text: str) -> str:
    """Return the text on one line, and no HTML: Markdown would let a tag through."""
    return " ".join(text.split()).replace("<", "&lt;").replace("*", r"\*")


def csv_text(table: Table) -> str:
    """Write a line a number: table, model, column, the paper's, ours, and how it was made."""
    file = io.StringIO()
    writer = csv.DictWriter(file, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in table.rows:
        of_row: dict[str, Any] = {"table": table.name, "scale": table.scale, "model": row.model}
        of_row |= row.about | {"experiment": ", ".join(row.experiments)}
        for block, key in ((title, key) for title, keys in table.blocks for key in keys):
            n = row.numbers[key]
            values = {"paper": n.paper, "paper_std": n.paper_std, "mean": n.mean, "std": n.std}
            shown = {name: f"{value:g}" for name, value in values.items() if value is not None}
            where = {"block": block, "column": key, "state": n.state, "seeds": n.n or ""}
            writer.writerow(of_row | where | shown)
        if not row.numbers:
            writer.writerow(of_row)
    return file.getvalue()


def latex(table: Table) -> str:
    """Write one `table` a block, for \\usepackage{booktabs}; wide ones are scaled by graphicx. The
    notes stand under the first."""
    return TEXTS.get_template("table.tex.jinja").render(table=table)


def tex(text: str) -> str:
    return "".join(LATEX.get(char, char) for char in " ".join(text.split()))


TEMPLATES.filters |= {"aligned": aligned, "grids": grids, "how": how, "line": line, "tex": tex}
FORMATS: dict[str, Callable[..., str]] = {
    "md": partial(markdown, "table.md.jinja", folds=False),
    "csv": csv_text,
    "tex": latex,
}
