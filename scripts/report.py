"""One HTML page about a run: settings, curves, samples, every evaluation, the papers' numbers.

    python scripts/report.py save/hdge

The page is self-contained: it can be opened without a network, sent and printed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run in place: the packages are not installed

from runs.cli import Parser  # noqa: E402
from runs.files import write_text  # noqa: E402
from runs.screen import print_line  # noqa: E402


def build_parser() -> Parser:
    text = "Write a run folder as one self-contained HTML page, RUN_FOLDER/report.html."
    parser = Parser(prog="report.py", allow_abbrev=False, description=text)
    add = parser.add_argument
    add("run_folder", metavar="RUN_FOLDER", type=Path,
        help="what train_wrn.py wrote, <log_dir>/<id>")  # fmt: skip
    add("--output", type=Path, metavar="FILE.html",
        help="where the page is written; an existing one is replaced "
        "(default: RUN_FOLDER/report.html)")  # fmt: skip
    add("--eval_dir", type=Path, nargs="+", default=[], metavar="FOLDER",
        help="further folders with answers of eval_wrn_ebm.py, such as those about several "
        "checkpoints (default: RUN_FOLDER/eval alone)")  # fmt: skip
    return parser


def main(argv: Sequence[str]) -> Path:
    """Write the page and return its path; a mistake is one line on stderr and exit code 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    from reports.page import NoRun, page, read_run  # --help and mistakes are answered first
    from training.flags import build_parser as flags

    output: Path = args.output or args.run_folder / "report.html"
    for folder in args.eval_dir:
        if not folder.is_dir():
            parser.error(f"--eval_dir {folder} is not a folder: give what --log_dir was")
    if output.suffix.lower() not in (".html", ".htm"):
        parser.error(f"--output {output} is no name of a page: give one that ends in .html")
    try:
        text = page(read_run(args.run_folder, args.eval_dir), vars(flags().parse_args([])))
    except NoRun as error:
        parser.error(str(error))
    try:
        write_text(output, text)
    except OSError as error:
        parser.error(f"--output: {error.strerror}: give a file in a folder that is writable")
    return output


if __name__ == "__main__":
    print_line(f"The report: {main(sys.argv[1:])}", sys.stdout)
