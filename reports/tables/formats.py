"""A built table as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence

from reports.tables.cells import Built, Cell, Line, Value
from reports.tables.titles import column_title, digits
from runs.screen import markdown as aligned

ABOUT = {
    **{"runs": "Runs", "setting": "Setting", "epochs": "Trained", "network": "Network"},
    **{"hardware": "Hardware", "hours": "Hours a run", "commit": "Commit"},
}
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
    *("mean", "std", "seeds", "state", *ABOUT),
)


def grids(table: Built) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, header, rows of texts) for each block and for how the rows were made."""
    found = []
    for title, keys in table.blocks:
        if not keys:
            continue
        head = ["Model"]
        for key in keys:
            shown = column_title(key)
            head += [f"{shown}, paper", f"{shown}, ours"] if in_paper(table, key) else [shown]
        rows = []
        for line in table.lines:
            row = [line.model]
            for key in keys:
                cell = line.cells[key]
                row += [paper_text(cell)] if in_paper(table, key) else []
                row.append(ours_text(cell, digits(key)))
            rows.append(row)
        found.append((title, head, rows))
    about = [[line.model, *(line.about.get(key, "-") for key in ABOUT)] for line in table.lines]
    return [*found, (HOW, ["Model", *ABOUT.values()], about)]


def in_paper(table: Built, key: str) -> bool:
    return any(line.cells[key].paper is not None for line in table.lines)


def paper_text(cell: Cell) -> str:
    """As it is printed: .8 is 0.80, .995 stays."""
    if cell.paper is None:
        return "-"
    value, std = cell.paper
    return _printed(value) + ("" if std is None else f" {PLUS_MINUS} {_printed(std)}")


def _printed(value: float) -> str:
    if abs(value) >= 2:  # percent, FID, Inception Score
        return f"{value:g}" if value % 1 else f"{value:.1f}"
    return f"{value:.2f}" if round(value, 2) == value else f"{value:g}"


def ours_text(cell: Cell, places: int) -> str:
    """Mean, standard deviation, and in brackets the number of seeds; else why there is none."""
    return cell.state or "-" if cell.ours is None else value_text(cell.ours, places)


def value_text(value: Value, places: int) -> str:
    spread = "" if value.std is None else f" {PLUS_MINUS} {value.std:.{places}f}"
    return f"{value.mean:.{places}f}{spread} ({value.n})"


def markdown(table: Built, level: int = 2) -> str:
    """Title, one table a block, notes; ends with a newline."""
    mark = "#" * level
    parts = [f"{mark} {plain(table.layout.title)} ({table.scale})"]
    for title, head, rows in grids(table):
        columns = [str(i) for i in range(len(head))]
        dicts = [dict(zip(columns, map(plain, row), strict=True)) for row in rows]
        body = aligned(dicts, columns, headers=dict(zip(columns, map(plain, head), strict=True)))
        parts += [f"**{plain(title)}**", body]
    if table.notes:
        parts.append("\n".join(f"- {plain(note)}" for note in table.notes))
    return "\n\n".join(parts) + "\n"


def plain(text: str) -> str:
    """On one line, and no HTML: Markdown would let a tag through."""
    return " ".join(text.split()).replace("<", "&lt;").replace("*", r"\*")


def csv_text(table: Built) -> str:
    """One line a number: table, model, column, the paper's value, ours, and how it was made."""
    file = io.StringIO()
    writer = csv.DictWriter(file, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for line in table.lines:
        for title, keys in table.blocks:
            for key in keys:
                writer.writerow(_numbers(table, line, title, key))
        if not any(keys for _, keys in table.blocks):
            writer.writerow(_identity(table, line))
    return file.getvalue()


def _identity(table: Built, line: Line) -> dict[str, object]:
    about = {key: line.about.get(key, "") for key in ABOUT}
    identity = {"table": table.name, "scale": table.scale, "model": line.model}
    return {**identity, "experiment": line.experiment or "", **about}


def _numbers(table: Built, line: Line, title: str, key: str) -> dict[str, object]:
    cell = line.cells[key]
    paper, paper_std = cell.paper or (None, None)
    ours = cell.ours
    numbers = {} if ours is None else {"mean": f"{ours.mean:.6g}", "seeds": ours.n}
    if ours is not None and ours.std is not None:
        numbers["std"] = f"{ours.std:.6g}"
    where = {"block": title, "column": key, "state": cell.state}
    return {
        **_identity(table, line),
        **where,
        **numbers,
        "paper": "" if paper is None else f"{paper:g}",
        "paper_std": "" if paper_std is None else f"{paper_std:g}",
    }


def latex(table: Built) -> str:
    """One `table` a block, for \\usepackage{booktabs}; wide ones are scaled by graphicx. The notes
    stand under the first."""
    parts = ["% needs \\usepackage{booktabs,graphicx}"]
    for i, (title, head, rows) in enumerate(grids(table)):
        lines = [r"\begin{table}", r"\centering", r"\resizebox{\linewidth}{!}{%"]
        lines.append(rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}")
        lines += [r"\toprule", _tex_row(head), r"\midrule", *map(_tex_row, rows), r"\bottomrule"]
        caption = tex(f"{table.layout.title} ({table.scale}). {title}.")
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


FORMATS: dict[str, Callable[[Built], str]] = {"md": markdown, "csv": csv_text, "tex": latex}
