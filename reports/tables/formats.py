"""A table, or a page of several, in each format: Markdown, HTML, CSV, LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reports.tables.about import COLUMNS
from reports.tables.table import Number, Table
from reports.tables.titles import column_title, digits
from runs.screen import markdown as aligned

HOW = "How the rows were made"
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


@dataclass(frozen=True)
class Part:
    """A piece of a page.

    kind: heading, text, list, grid (its first item is the head, the first `level` columns are
    text), picture (`items`: its path) or fold (`items`: the parts within).
    """

    kind: str
    text: str = ""
    items: Sequence[Any] = ()
    level: int = 1


def grids(table: Table) -> list[tuple[str, list[list[str]]]]:
    """Return (title, head and rows of texts) for each block and for how the rows were made."""
    found = []
    for title, keys in table.blocks:
        lines = [["Model"], *([row.model] for row in table.rows)]
        for key in keys:
            numbers = [row.numbers[key] for row in table.rows]
            shown, ours = column_title(key), [value_text(n, digits(key)) for n in numbers]
            in_paper = any(number.paper is not None for number in numbers)
            columns = [[f"{shown}, paper", *map(paper_text, numbers)]] if in_paper else []
            columns.append([f"{shown}, ours" if in_paper else shown, *ours])
            for column in columns:
                lines = [[*line, text] for line, text in zip(lines, column, strict=True)]
        found += [(title, lines)] if keys else []
    how = [[row.model, *(row.about.get(key, "-") for key in COLUMNS)] for row in table.rows]
    return [*found, (HOW, [["Model", *COLUMNS.values()], *how])]


def paper_text(number: Number) -> str:
    """Write it as it is printed: .8 is 0.80, .995 stays."""
    texts = [_printed(value) for value in (number.paper, number.paper_std) if value is not None]
    return f" {PLUS_MINUS} ".join(texts) or "-"


def _printed(value: float) -> str:
    if abs(value) >= 2:  # percent, FID, Inception Score
        return f"{value:g}" if value % 1 else f"{value:.1f}"
    return f"{value:.2f}" if round(value, 2) == value else f"{value:g}"


def value_text(number: Number, places: int) -> str:
    """Write mean, standard deviation and, in brackets, the number of seeds; or the state."""
    if number.mean is None:
        return number.state or "-"
    spread = "" if number.std is None else f" {PLUS_MINUS} {number.std:.{places}f}"
    return f"{number.mean:.{places}f}{spread} ({number.n})"


def parts_of(table: Table, title: str = "") -> list[Part]:
    """Return the parts of a table by itself."""
    found = [Part("grid", of_block, rows, 1) for of_block, rows in grids(table)]
    found[-1] = Part("fold", HOW, [Part("grid", "", found[-1].items, len(COLUMNS) + 1)])
    notes = [Part("list", items=table.notes)] if table.notes else []
    return [Part("heading", title or f"{table.title} ({table.scale})", level=2), *found, *notes]


def markdown(parts: Sequence[Part], base: Path = Path(), folds: bool = False) -> str:
    """Write a page whose pictures' paths are relative to `base`. Without `folds`, as for a
    terminal, what is folded is shown under its title."""
    texts = []
    for part in parts:
        text = plain(part.text)
        if part.kind == "heading":
            texts.append(f"{'#' * part.level} {text}")
        elif part.kind == "list":
            texts.append("\n".join(f"- {plain(item)}" for item in part.items))
        elif part.kind == "picture":
            texts.append(f"![{text}]({part.items[0].relative_to(base).as_posix()})")
        elif part.kind == "fold":
            within = markdown(part.items, base, folds).rstrip("\n")
            head, end = (f"<details><summary>{text}</summary>", ["</details>"])
            texts += [head, within, *end] if folds else [f"**{text}**", within]
        else:
            texts += [part.text if part.kind == "text" else f"**{text}**"] if text else []
        if part.kind == "grid":
            texts.append(grid(*part.items))
    return "\n\n".join(texts) + "\n"


def grid(head: Sequence[str], *rows: Sequence[str]) -> str:
    columns = [str(i) for i in range(len(head))]
    found = [dict(zip(columns, map(plain, row), strict=True)) for row in (head, *rows)]
    return aligned(found[1:], columns, headers=found[0])


def plain(text: str) -> str:
    """Return the text on one line, and no HTML: Markdown would let a tag through."""
    return " ".join(text.split()).replace("<", "&lt;").replace("*", r"\*")


def anchor(title: str) -> str:
    return title.partition(":")[0].lower().replace(" ", "-")


def csv_text(table: Table) -> str:
    """Write a line a number: table, model, column, the paper's, ours, and how it was made."""
    file = io.StringIO()
    writer = csv.DictWriter(file, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    columns = [(title, key) for title, keys in table.blocks for key in keys]
    for row in table.rows:
        about = {key: row.about.get(key, "") for key in COLUMNS}
        about |= {"table": table.name, "scale": table.scale, "model": row.model}
        about["experiment"] = ", ".join(row.experiments)
        for title, key in columns:
            number = row.numbers[key]
            values = {"paper": number.paper, "paper_std": number.paper_std}
            shown = {name: "" if value is None else f"{value:g}" for name, value in values.items()}
            values = {"mean": number.mean, "std": number.std}
            shown |= {n: "" if value is None else f"{value:.6g}" for n, value in values.items()}
            where = {"block": title, "column": key, "state": number.state}
            writer.writerow({**about, **where, **shown, "seeds": number.n or ""})
        if not columns:
            writer.writerow(about)
    return file.getvalue()


def latex(table: Table) -> str:
    """Write one `table` a block, for \\usepackage{booktabs}; wide ones are scaled by graphicx. The
    notes stand under the first."""
    parts = ["% needs \\usepackage{booktabs,graphicx}"]
    for i, (title, (head, *rows)) in enumerate(grids(table)):
        lines = [r"\begin{table}", r"\centering", r"\resizebox{\linewidth}{!}{%"]
        lines.append(rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}")
        lines += [r"\toprule", _tex_row(head), r"\midrule", *map(_tex_row, rows), r"\bottomrule"]
        caption = tex(f"{table.title} ({table.scale}). {title}.")
        lines += [r"\end{tabular}}", rf"\caption{{{caption}}}"]
        if table.notes and i == 0:
            notes = [rf"\item {tex(note)}" for note in table.notes]
            lines += [r"\begin{itemize}\footnotesize", *notes, r"\end{itemize}"]
        parts.append("\n".join([*lines, r"\end{table}"]))
    return "\n\n".join(parts) + "\n"


def _tex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(tex, cells)) + r" \\"


def tex(text: str) -> str:
    return "".join(LATEX.get(char, char) for char in " ".join(text.split()))


FORMATS = {"md": lambda table: markdown(parts_of(table)), "csv": csv_text, "tex": latex}
