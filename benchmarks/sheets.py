"""Images as sheets, small enough to travel with the code to a machine without a network.

    python benchmarks/sheets.py pack FOLDER --images 12000     # of --data_root
    python benchmarks/sheets.py unpack FOLDER DATA_ROOT        # <name>.npz, as data/ reads them

A sheet is a lossless WebP of 100 images a row; its labels are in an NPY file of the same name.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run in place: the packages are not installed

from runs.cli import COUNT, Parser  # noqa: E402
from runs.names import data_root  # noqa: E402

COLUMNS, MOST = 100, 10_000  # images a row, and images a sheet: WebP has 16,383 pixels a side
Arrays = dict[str, np.ndarray]


def write_sheets(arrays: Arrays, name: str, folder: Path, most: dict[str, int]) -> None:
    """Write the first `most[split]` images of each split that `arrays` has, as <name>-<split>-<i>.

    arrays: `<split>_images`, uint8 (N, S, S, 3), and `<split>_labels` (N,).
    """
    from PIL import Image

    for split, n in most.items():
        images = arrays.get(f"{split}_images", np.empty(0))[:n]
        for i in range(0, len(images), MOST):
            sheet = images[i : i + MOST]
            size, rows = sheet.shape[1], -(-len(sheet) // COLUMNS)
            padded = np.zeros((rows * COLUMNS, size, size, 3), np.uint8)
            padded[: len(sheet)] = sheet
            tiled = padded.reshape(rows, COLUMNS, size, size, 3).transpose(0, 2, 1, 3, 4)
            pixels = tiled.reshape(rows * size, COLUMNS * size, 3)
            path = folder / f"{name}-{split}-{i // MOST}.webp"
            Image.fromarray(pixels).save(path, lossless=True, quality=100, method=4)
            np.save(path.with_suffix(".npy"), arrays[f"{split}_labels"][i : i + len(sheet)])


def sheets_of(folder: Path) -> list[Path]:
    """Return the sheets of a folder, those of a split in their order; [] where it has none."""
    found = [path for path in folder.glob("*-*-*.webp") if path.with_suffix(".npy").exists()]
    return sorted(found, key=lambda path: (len(path.name), path.name))


def read_sheets(folder: Path) -> dict[str, Arrays]:
    """Return by data set the arrays that `write_sheets` was given."""
    from PIL import Image

    found: dict[str, dict[str, list[np.ndarray]]] = {}
    for path in sheets_of(folder):
        name, split, _ = path.stem.rsplit("-", 2)
        labels = np.load(path.with_suffix(".npy"), allow_pickle=False)
        with Image.open(path) as sheet:
            pixels = np.asarray(sheet.convert("RGB"))
        size = pixels.shape[1] // COLUMNS
        tiled = pixels.reshape(-1, size, COLUMNS, size, 3).transpose(0, 2, 1, 3, 4)
        images = tiled.reshape(-1, size, size, 3)[: len(labels)]
        for kind, part in (("images", images), ("labels", labels)):
            found.setdefault(name, {}).setdefault(f"{split}_{kind}", []).append(part)
    return {
        name: {key: np.concatenate(parts) for key, parts in arrays.items()}
        for name, arrays in found.items()
    }


def pack(folder: Path, data_root: Path, names: Sequence[str], most: dict[str, int]) -> None:
    for name in names:
        with np.load(data_root / f"{name}.npz", allow_pickle=False) as file:
            train = most if name == names[0] else {**most, "train": 0}
            folder.mkdir(parents=True, exist_ok=name != names[0])
            write_sheets(dict(file), name, folder, train)


def unpack(folder: Path, data_root: Path) -> None:
    if not sheets_of(folder):
        raise ValueError("it has no sheets: give a folder that `sheets.py pack` has made")
    data_root.mkdir(parents=True, exist_ok=True)
    for name, arrays in read_sheets(folder).items():
        np.savez(data_root / f"{name}.npz", **arrays)  # type: ignore[arg-type]


# fmt: off
def build_parser() -> Parser:
    parser = Parser(prog="sheets.py", allow_abbrev=False, description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    add = verbs.add_parser("pack", help="NPZ files to sheets").add_argument
    add("folder", type=Path, metavar="FOLDER", help="of the sheets; must not exist yet")
    add("--data_root", type=Path, default=Path(data_root()), metavar="FOLDER",
        help="with <name>.npz (default: $HDGE_DATA_ROOT, else ./datasets)")
    add("--names", nargs="+", default=["cifar10"], metavar="NAME",
        help="data sets; of all but the first the test images alone (default: cifar10)")
    add("--images", type=COUNT, default=12_000, metavar="N",
        help="the first N training images (default: %(default)s, 21 MB of CIFAR-10)")
    add("--test_images", type=COUNT, default=1000, metavar="N",
        help="the first N test images of each set (default: %(default)s)")
    add = verbs.add_parser("unpack", help="sheets to NPZ files").add_argument
    add("folder", type=Path, metavar="FOLDER", help="of the sheets")
    add("data_root", type=Path, metavar="DATA_ROOT", help="<name>.npz are written there")
    return parser


# fmt: on
def main(argv: Sequence[str]) -> None:
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        if args.verb == "pack":
            most = {"train": args.images, "test": args.test_images}
            pack(args.folder, args.data_root, args.names, most)
        else:
            unpack(args.folder, args.data_root)
    except (OSError, ValueError, KeyError) as error:
        parser.error(f"{args.verb} {args.folder}: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
