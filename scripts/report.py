"""Write an HTML page about a run: settings, curves, samples, every evaluation, the papers' numbers.

    python scripts/report.py save/hdge
    python scripts/report.py save/hdge save/jem --output compared.html

The page is self-contained: it can be sent, printed and opened without a network.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run in place: the packages are not installed

from runs.cli import Parser, UsageError
from runs.files import write_text
from runs.screen import print_line

COLOURS = 6  # for the lines of a chart, and so the largest number of runs


def build_parser() -> Parser:
    text = "Write a run, or several side by side, as one self-contained HTML page."
    parser = Parser(prog="report.py", allow_abbrev=False, description=text)
    add = parser.add_argument
    add("run_folders", metavar="RUN_FOLDER", type=Path, nargs="+",
        help="what train_wrn.py wrote, <log_dir>/<id>; of several runs the page has their curves "
        "in one chart, the settings that differ, and their numbers")  # fmt: skip
    add("--output", type=Path, metavar="FILE.html",
        help="where the page is written; an existing one is replaced "
        "(default, of one run: RUN_FOLDER/report.html)")  # fmt: skip
    add("--eval_dir", type=Path, nargs="+", default=[], metavar="FOLDER",
        help="further folders with answers of eval_wrn_ebm.py, such as those about several "
        "checkpoints (default: RUN_FOLDER/eval alone)")  # fmt: skip
    return parser


def main(argv: Sequence[str]) -> Path:
    """Write the page and return its path; a mistake is one line on stderr and exit code 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    from reports.page import NoRun, page, read_run  # slow imports: not needed for --help
    from reports.tables.compare import compared
    from training.flags import build_parser as train_parser

    folders, several = args.run_folders, len(args.run_folders) > 1
    if several and args.output is None:
        parser.error("--output is missing: give a file for the page of several runs")
    if several and (args.eval_dir or len(folders) > COLOURS):
        parser.error(f"RUN_FOLDER: give {COLOURS} at most, and one alone with --eval_dir")
    output: Path = args.output or folders[0] / "report.html"
    for folder in args.eval_dir:
        if not folder.is_dir():
            parser.error(f"--eval_dir {folder} is not a folder: give what --log_dir was")
    if output.suffix.lower() not in (".html", ".htm"):
        parser.error(
            f"--output {output} is not the name of an HTML file: give one that ends in .html"
        )
    try:
        if several:
            text = compared(folders).html()
        else:
            text = page(read_run(folders[0], args.eval_dir), vars(train_parser().parse_args([])))
    except (NoRun, UsageError) as error:
        parser.error(str(error))
    try:
        write_text(output, text)
    except OSError as error:
        parser.error(f"--output: {error.strerror}: give a file in a folder that is writable")
    return output


if __name__ == "__main__":
    print_line(f"The report: {main(sys.argv[1:])}", sys.stdout)
