"""The papers' tables beside our own numbers, as Markdown, CSV, LaTeX and pictures.

    python scripts/tables.py collect --scale small   run folders -> results/small/<experiment>.json
    python scripts/tables.py write                   results/ -> RESULTS.md and its pictures
    python scripts/tables.py compare RUN_FOLDER ...  any runs side by side

`collect` reads the run folders of scripts/experiments.py. `write` reads the records alone: from the
same records it writes the same bytes.
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
    """Write the scale's records, copy its pictures, and return the written files' paths."""
    from reports.page import NoRun, read_run
    from reports.tables import pictures, records

    folder = root / scale
    overlays = [overlay for table in TABLES.values() for overlay, _, _ in table.overlays]
    wanted = done.asked_settings(scale)
    seeds: dict[str, dict[int, records.Seed]] = {}
    for run in sorted(folder.iterdir()) if folder.is_dir() else []:
        name, _, seed = run.name.rpartition("-s")
        if name not in rows.EXPERIMENTS or not seed.isdecimal() or not run.is_dir():
            continue
        folders = [rows.folder(root, scale, overlay, int(seed)) for overlay in overlays]
        try:
            found = read_run(run, folders)
        except NoRun:
            continue  # stopped before it wrote its settings
        for text in found.gaps:
            records.warn(f"{scale}/{run.name}: {text}")
        record = records.seed_of(found, done.asks(wanted.get(name, {})))
        seeds.setdefault(name, {})[int(seed)] = record
    if not seeds:
        raise UsageError(
            f"--root {root} holds no runs in {scale}/<experiment>-s<seed>: run "
            f"scripts/experiments.py with --scale {scale} first"
        )
    written = records.collect(scale, seeds, results)
    return written + pictures.copy_pictures(TABLES, folder, results / scale)


def write(results: Path, output: Path | None = None) -> list[Path]:
    """Write RESULTS.md and its pictures; with `output` also each table, as Markdown, CSV and LaTeX
    in that folder. Return all written files."""
    from reports.tables import formats, page, records, table
    from reports.tables.protocols import check_sizes

    results = results.resolve()
    by_scale = records.read_records(results, SCALES)
    for scale, experiments in by_scale.items():  # the claims compare rows of several tables
        check_sizes(f"--results: RESULTS.md at scale {scale}", experiments)
    built = []
    for name in TABLES:
        at = {s: tables[name].rows for s in SCALES if name in (tables := rows.tables_at(s))}
        filled = [scale for scale in at if by_scale.get(scale, {}).keys() & set(TABLES[name].rows)]
        for scale in filled or [*at][:1]:  # without records, an empty table of the first scale
            built.append(table.build(name, scale, at[scale], by_scale.get(scale, {})))
    at_paper = {name: table_at.rows for name, table_at in rows.tables_at("paper").items()}
    written = page.write_results(built, by_scale, results, at_paper)
    folders = {"png": results}
    if output is not None:
        folders |= dict.fromkeys(formats.FORMATS, output.resolve())
        for built_table, (suffix, form) in product(built, formats.FORMATS.items()):
            path = folders[suffix] / f"{built_table.name}-{built_table.scale}.{suffix}"
            written.append(records.write(path, form(table=built_table)))
    for name, scale, (suffix, folder) in product(TABLES, SCALES, folders.items()):
        stale = folder / f"{name}-{scale}.{suffix}"
        if stale not in written:  # the scale's records were removed since
            stale.unlink(missing_ok=True)
    return written


def compare(folders: Sequence[Path], output: Path | None) -> str:
    """Return the comparison of runs as Markdown; with `output` write it to that folder, and its
    table as CSV, LaTeX and a picture. Raises as `compared`."""
    from reports.tables import formats, pictures
    from reports.tables.compare import compared
    from reports.tables.records import write

    comparison = compared(folders)
    if output is not None:
        write(output / "comparison.md", comparison.markdown())
        write(output / "comparison.csv", formats.csv_text(comparison.table))
        write(output / "comparison.tex", formats.latex(comparison.table))
        pictures.save_picture(comparison.table, output / "comparison.png")
    return comparison.markdown()


def main(argv: Sequence[str]) -> int:
    """Run the action and print its result; a mistake is one line on stderr and exit code 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    from reports.page import NoRun  # a slow import: not needed for --help

    try:
        if args.action == "compare":
            text = compare(args.run_folders, args.output).rstrip("\n")
        elif args.action == "write":
            written = write(args.results, args.output)
            text = f"{len(written)} files: {args.results.resolve().parent / 'RESULTS.md'}"
        else:
            paths = (path for s in args.scale for path in collect(args.root, s, args.results))
            text = "\n".join(map(str, paths))
        print_line(text, sys.stdout)
    except (UsageError, NoRun) as error:
        parser.error(str(error))
    except OSError as error:
        cause = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or error
        parser.error(
            f"{args.action}: {cause}: make it readable and writable, or give another folder"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
