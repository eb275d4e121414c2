"""The first images of data sets, small enough to travel with the code to where there is no network.

    python benchmarks/subset.py FOLDER --images 12000
    bash scripts/gpu.sh OUT --data_root FOLDER

Reads <name>.npz of --data_root, and writes FOLDER/<name>.npz.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the packages are not installed

from runs.cli import COUNT, Parser
from runs.names import data_root


# fmt: off
def build_parser() -> Parser:
    parser = Parser(prog="subset.py", allow_abbrev=False, description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="what is written; it must not exist yet")
    add("--data_root", type=Path, default=Path(data_root()), metavar="FOLDER",
        help="with <name>.npz (default: $HDGE_DATA_ROOT, else ./datasets)")
    add("--names", nargs="+", default=["cifar10"], metavar="NAME",
        help="data sets; of all but the first the test images alone (default: cifar10)")
    add("--images", type=COUNT, default=12_000, metavar="N",
        help="the first N training images (default: %(default)s, 37 MB of CIFAR-10)")
    add("--test_images", type=COUNT, default=1000, metavar="N",
        help="the first N test images of each set (default: %(default)s)")
    return parser


# fmt: on
def main(argv: Sequence[str]) -> None:
    parser = build_parser()
    args = parser.parse_args(argv)
    counts = {"train": args.images, "test": args.test_images}
    try:
        for name in args.names:
            with np.load(args.data_root / f"{name}.npz", allow_pickle=False) as file:
                arrays = {
                    f"{split}_{kind}": file[f"{split}_{kind}"][:n]
                    for split, n in counts.items()
                    for kind in ("images", "labels")
                }
            args.folder.mkdir(parents=True, exist_ok=name != args.names[0])
            np.savez_compressed(args.folder / f"{name}.npz", **arrays)
            counts.pop("train", None)  # the data sets after the first have test images only
    except (OSError, ValueError, KeyError) as error:
        parser.error(f"{args.folder}: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
