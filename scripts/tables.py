"""The papers' tables beside our own numbers, as Markdown, CSV, LaTeX and pictures.

    python scripts/tables.py collect --scale small   run folders -> results/small/<experiment>.json
    python scripts/tables.py write                   results/ -> RESULTS.md and its pictures
    python scripts/tables.py compare RUN_FOLDER ...  any runs side by side

Run folders are those of scripts/experiments.py. RESULTS.md is made from the records alone: made
again, it is the same bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run in place: the packages are not installed

from runs.cli import Parser, UsageError
from runs.screen import print_line
from scripts import done, rows
from scripts.rows import SCALES, TABLES


def build_parser() -> Parser:
    parser = Parser(prog="tables.py", allow_abbrev=False, description=__doc__.split("\n")[0])
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, text: str) -> Any:
        return actions.add_parser(
            name, help=text, description=text, allow_abbrev=False
        ).add_argument

    folder: dict[str, Any] = {"type": Path, "metavar": "FOLDER"}
    results = folder | {"default": Path("results"), "help": "the records; RESULTS.md is written "
                        "beside it (default: %(default)s)"}  # fmt: skip
    add = action("collect", "turn run folders into small records, which are to be committed")
    add("--root", **folder, default=Path("save/tables"),
        help="runs are in <root>/<scale>/<experiment>-s<seed> (default: %(default)s)")  # fmt: skip
    add("--scale", nargs="+", choices=tuple(SCALES), default=["small"], metavar="SCALE",
        help=f"one or several of {', '.join(SCALES)} (default: small)")  # fmt: skip
    add("--results", **results)
    add = action("write", "turn records into RESULTS.md and its pictures")
    add("--results", **results)
    add("--output", **folder, help="also write each table there, as <table>-<scale>.md, .csv, .tex")
    add = action("compare", "print any run folders side by side, as a Markdown table")
    add("run_folders", nargs="+", type=Path, metavar="RUN_FOLDER",
        help="what a training run left, <log_dir>/<id>")  # fmt: skip
    add("--output", **folder, help="also write comparison.md, .csv, .tex and .png there")
    return parser


def collect(root: Path, scale: str, results: Path) -> list[Path]:
    """Return the records and pictures that were written."""
    from reports.page import NoRun, read_run
    from reports.tables import pictures, records

    folder = root / scale
    overlays = [place for table in TABLES.values() for place, _, _ in table.overlays]
    wanted = done.asked_settings(scale)
    found: dict[str, dict[int, records.Seed]] = {}
    for run in sorted(folder.iterdir()) if folder.is_dir() else []:
        name, _, seed = run.name.rpartition("-s")
        if name not in rows.EXPERIMENTS or not seed.isdecimal() or not run.is_dir():
            continue
        places = [rows.folder(root, scale, place, int(seed)) for place in overlays]
        try:
            asked = done.asks(wanted.get(name, {}))
            found.setdefault(name, {})[int(seed)] = records.seed_of(read_run(run, places), asked)
        except NoRun:
            continue  # stopped before it wrote its settings
    if not found:
        raise UsageError(
            f"--root {root} holds no runs in {scale}/<experiment>-s<seed>: run "
            f"scripts/experiments.py with --scale {scale} first"
        )
    written = records.collect(scale, found, results)
    return written + pictures.copy_pictures(TABLES, folder, results / scale)


def write(results: Path, output: Path | None = None) -> list[Path]:
    """Write RESULTS.md and its pictures; with `output` each table there, as Markdown,
    CSV and LaTeX. Return all files."""
    from reports.tables import formats, page, records, table
    from reports.tables.protocols import check_sizes

    results = results.resolve()
    found = records.read_records(results, SCALES)
    for scale, of_scale in found.items():  # the claims compare rows of several tables
        check_sizes(f"--results: RESULTS.md at scale {scale}", of_scale)
    built = []
    for name in TABLES:
        at = {s: each[name].rows for s in SCALES if name in (each := rows.tables_at(s))}
        known = [scale for scale in at if found.get(scale, {}).keys() & set(TABLES[name].rows)]
        for scale in known or [*at][:1]:
            built.append(table.build(name, scale, at[scale], found.get(scale, {})))
    written = page.write_results(built, found, results)
    places = {"png": results}
    if output is not None:
        places |= dict.fromkeys(formats.FORMATS, output.resolve())
        for each, (suffix, form) in product(built, formats.FORMATS.items()):
            path = places[suffix] / f"{each.name}-{each.scale}.{suffix}"
            written.append(records.write(path, form(table=each)))
    for name, scale, (suffix, place) in product(TABLES, SCALES, places.items()):
        stale = place / f"{name}-{scale}.{suffix}"
        if stale not in written:  # of a scale whose records are gone
            stale.unlink(missing_ok=True)
    return written


def compare(folders: Sequence[Path], output: Path | None) -> str:
    """Return the Markdown; with `output` it is written there, too, and the numbers as CSV, LaTeX
    and a picture. Raises as `compared`."""
    from reports.tables import formats, pictures
    from reports.tables.compare import compared
    from reports.tables.records import write

    found = compared(folders)
    if output is not None:
        write(output / "comparison.md", found.markdown())
        write(output / "comparison.csv", formats.csv_text(found.table))
        write(output / "comparison.tex", formats.latex(found.table))
        pictures.save_picture(found.table, output / "comparison.png")
    return found.markdown()


def main(argv: Sequence[str]) -> int:
    """Run; a mistake is one line on stderr and exit code 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    from reports.page import NoRun  # --help and mistakes are answered first

    try:
        if args.action == "compare":
            told = compare(args.run_folders, args.output).rstrip("\n")
        elif args.action == "write":
            written = write(args.results, args.output)
            told = f"{len(written)} files: {args.results.resolve().parent / 'RESULTS.md'}"
        else:
            found = (collect(args.root, scale, args.results) for scale in args.scale)
            told = "\n".join(str(path) for written in found for path in written)
        print_line(told, sys.stdout)
    except (UsageError, NoRun) as error:
        parser.error(str(error))
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or error
        parser.error(f"{args.action}: {what}: let it be read and written, or give another folder")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
