"""The papers' tables beside our own numbers, as Markdown, CSV, LaTeX, pictures and pages.

    python scripts/tables.py collect --scale small   run folders -> results/small/<experiment>.json
    python scripts/tables.py write                   results/ -> RESULTS.md, results/index.html, ...
    python scripts/tables.py compare RUN_FOLDER ...  any runs side by side

Run folders are those of scripts/experiments.py. The pages are made from the records alone: made
again, they are the same bytes.
"""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run in place: the packages are not installed

from runs.cli import Parser, UsageError  # noqa: E402
from runs.screen import print_line  # noqa: E402
from scripts.done import finished  # noqa: E402
from scripts.rows import (  # noqa: E402
    EXPERIMENTS,
    JUDGES,
    SCALES,
    TABLES,
    judge,
    overlay,
    question_words,
    rows_at,
)

SEED = re.compile(r"(?P<name>.+)-s(?P<seed>[0-9]+)")


def build_parser() -> Parser:
    parser = Parser(prog="tables.py", allow_abbrev=False, description=__doc__.split("\n")[0])
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, text: str) -> Any:
        return actions.add_parser(
            name, help=text, description=text, allow_abbrev=False
        ).add_argument

    add = action("collect", "turn run folders into small records, which are to be committed")
    add("--root", type=Path, default=Path("save/tables"), metavar="FOLDER",
        help="runs are in <root>/<scale>/<experiment>-s<seed> (default: %(default)s)")  # fmt: skip
    add("--scale", nargs="+", choices=tuple(SCALES), default=["small"], metavar="SCALE",
        help=f"one or several of {', '.join(SCALES)} (default: small)")  # fmt: skip
    add_results(add)
    add_results(action("write", "turn records into RESULTS.md, and tables, pictures and a page"))
    add = action("compare", "print any run folders side by side, as a Markdown table")
    add("run_folders", nargs="+", type=Path, metavar="RUN_FOLDER",
        help="what a training run left, <log_dir>/<id>")  # fmt: skip
    add("--output", type=Path, default=None, metavar="FOLDER",
        help="also write comparison.md, .csv, .tex and .png there")  # fmt: skip
    return parser


def add_results(add: Any) -> None:
    add("--results", type=Path, default=Path("results"), metavar="FOLDER",
        help="the records; RESULTS.md is written beside it (default: %(default)s)")  # fmt: skip


# --------------------------------------------------------------------------------------- collect


def collect(root: Path, scale: str, results: Path) -> list[Path]:
    """The records and pictures that were written."""
    from reports.page.run import NoRun
    from reports.tables import copies, records

    folder = root / scale
    overlays = [place for table in TABLES.values() for place, _, _ in table.overlays]
    asked = asked_settings(scale)
    found: dict[str, dict[int, records.Record]] = {}
    for run in sorted(folder.iterdir()) if folder.is_dir() else []:
        match = SEED.fullmatch(run.name)
        if match is None or match["name"] not in EXPERIMENTS or not run.is_dir():
            continue
        if scale in JUDGES and (match["name"], int(match["seed"])) == judge(scale):
            continue  # no row: it was trained to compare samples
        try:
            record = records.seed_record(
                run,
                finished=finished(run),
                places=[overlay(root, scale, place, int(match["seed"])) for place in overlays],
                asked=asked.get(match["name"], {}),
            )
        except NoRun:
            continue  # stopped before it wrote its settings
        found.setdefault(match["name"], {})[int(match["seed"])] = record
    if not found:
        raise UsageError(
            f"--root {root} holds no runs in {scale}/<experiment>-s<seed>: run "
            f"scripts/experiments.py with --scale {scale} first"
        )
    return [
        *records.collect(root, scale, found, results),
        *copies.copy_pictures(TABLES, folder, results / scale),
    ]


def asked_settings(scale: str) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Experiment -> question -> the settings that the tables ask it with, all of them."""
    from evaluation import flags
    from runs.files import plain

    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    parser = flags.build_parser()
    for table in TABLES.values():
        questions = [(q, table.rows) for q in table.questions]
        for question, rows in [*questions, *((q, rows) for _, q, rows in table.overlays)]:
            words = question_words(scale, question)
            settings = parser.parse_args(["--load_path", "-", "--eval", *words])
            flags.resolve(settings)
            for row in rows:
                wanted = found.setdefault(row, {}).setdefault(words[0], [])
                wanted.append(plain(vars(settings)))
    return found


# ----------------------------------------------------------------------------------------- write


def write(results: Path) -> list[Path]:
    """RESULTS.md, results/index.html, and <table>-<scale>.{md,csv,tex,png}; all are returned."""
    from reports.tables import cells, copies, formats, page, pictures, records
    from reports.tables.protocols import check_sizes

    results = results.resolve()
    found = {
        scale: {p.stem: records.read_record(p) for p in sorted((results / scale).glob("*.json"))}
        for scale in SCALES
    }
    found = {scale: of_scale for scale, of_scale in found.items() if of_scale}
    for scale, of_scale in found.items():  # the claims compare rows of several tables
        check_sizes("RESULTS.md", scale, of_scale)
    built = []
    for name, table in TABLES.items():
        scales = [scale for scale, known in found.items() if known.keys() & set(table.rows)]
        for scale in scales or [first_scale(table.rows)]:
            rows = rows_at(scale, table.rows)
            built.append(cells.build(name, scale, rows, found.get(scale, {})))
    written, shown = [], []
    for table_built in built:
        stem = f"{table_built.name}-{table_built.scale}"
        for suffix, form in formats.FORMATS.items():
            written.append(results / f"{stem}.{suffix}")
            records.write(written[-1], form(table_built))
        picture = results / f"{stem}.png"
        drawn = pictures.save_picture(table_built, picture)
        written += [picture] if drawn else []
        known = copies.copies_of(table_built.name, results / table_built.scale)
        left = [(f"{table_built.layout.title}, as evaluated", path) for path in known]
        shown.append(page.Shown(table_built, picture if drawn else None, left))
    for path, text in (
        (results.parent / "RESULTS.md", page.results_markdown(shown, found, results)),
        (results / "index.html", page.results_html(shown, found)),
    ):
        records.write(path, text)
        written.append(path)
    remove_stale(results, written)
    return written


def first_scale(rows: Sequence[str]) -> str:
    return next(scale for scale in SCALES if rows_at(scale, rows))


def remove_stale(results: Path, written: Sequence[Path]) -> None:
    """Tables of scales whose records are gone."""
    for name in TABLES:
        for scale in SCALES:
            for suffix in ("md", "csv", "tex", "png"):
                path = results / f"{name}-{scale}.{suffix}"
                if path not in written:
                    path.unlink(missing_ok=True)


# --------------------------------------------------------------------------------------- compare


def compare(folders: Sequence[Path], output: Path | None) -> str:
    """The Markdown; with `output` it is written there, too, and the numbers as CSV, LaTeX and a
    picture. Raises NoRun for a folder that holds no run."""
    from reports.tables import formats, pictures
    from reports.tables.compare import compared, comparison
    from reports.tables.records import seed_record, write

    labels = [folder.resolve().name for folder in folders]
    if len(set(labels)) < len(labels):
        labels = [str(folder) for folder in folders]
    if len(set(labels)) < len(labels):
        raise UsageError("RUN_FOLDER: a folder was given twice: give each one once")
    runs = {
        label: seed_record(folder, finished=finished(folder))
        for label, folder in zip(labels, folders, strict=True)
    }
    text = comparison(runs)
    if output is not None:
        table = compared(runs)
        write(output / "comparison.md", text, "--output")
        write(output / "comparison.csv", formats.csv_text(table), "--output")
        write(output / "comparison.tex", formats.latex(table), "--output")
        pictures.save_picture(table, output / "comparison.png", "--output")
    return text


def act(args: Namespace) -> str:
    """Do what was asked for; what there is to print."""
    if args.action == "compare":
        return compare(args.run_folders, args.output).rstrip("\n")
    if args.action == "write":
        return f"{len(write(args.results))} files: {args.results.resolve().parent / 'RESULTS.md'}"
    written = [path for scale in args.scale for path in collect(args.root, scale, args.results)]
    return "\n".join(map(str, written))


def main(argv: Sequence[str]) -> int:
    """A mistake is one line on stderr and exit code 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    from reports.page.run import NoRun  # --help and mistakes are answered first

    try:
        print_line(act(args), sys.stdout)
    except (UsageError, NoRun) as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"{args.action}: {error}: let it be read and written, or give another folder")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
